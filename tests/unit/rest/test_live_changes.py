"""Routes that change the server, in a real Envoy: who may call them, with what bodies, and how uploads go through."""

import hashlib
import os

import psutil
import pytest

from tests.integration.rest import Raw, assert_error, call, get, post
from tests.unit.rest.conftest import MAX_BODY, ORIGIN, TIMEOUT_S, UPLOAD_TIMEOUT_S

MIB = 1 << 20
CHANGES = [
    ("POST", "/admin/reload"),
    ("POST", "/admin/ab/promote"),
    ("POST", "/v1/models"),
    ("POST", "/v1/models/iris/unload"),
    ("PUT", "/v1/models/iris"),
    ("DELETE", "/v1/models/iris"),
    ("DELETE", "/v1/models/iris/versions/1"),
]
FORM = "multipart/form-data; boundary=b"


@pytest.mark.parametrize("sent", [b"Content-Length: 0\r\n", b""])
def test_a_change_may_have_no_body(rest_port: int, sent: bytes) -> None:
    for path, twin in ((b"/admin/reload", "SystemReload"), (b"/v1/models/iris/load", "ModelsLoad")):
        with Raw(rest_port) as raw:
            raw.send(b"POST " + path + b" HTTP/1.1\r\nHost: nexus\r\nConnection: close\r\n" + sent + b"\r\n")
            head, _, body = raw.answers(3).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        assert twin.encode() in body


def test_a_change_has_no_body_of_another_kind(rest_port: int) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", FORM):
        assert_error(post(rest_port, "/admin/reload", b"", Content_Type=kind), 415)
    with Raw(rest_port) as raw:
        raw.send(b"POST /admin/reload HTTP/1.1\r\nHost: nexus\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        assert raw.answers(3).startswith(b"HTTP/1.1 415")
    assert_error(post(rest_port, "/predict", b"", Content_Type=""), 415)


@pytest.mark.parametrize(("verb", "path"), CHANGES)
def test_pages_from_elsewhere_change_nothing(rest_port: int, verb: str, path: str) -> None:
    other = "http://b.example"
    for headers in (
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site", "Origin": other},
        {"Sec_Fetch_Site": "cross-site", "Origin": other},
        {"Origin": other},
        {"Origin": "null"},
        {"Origin": f"{ORIGIN}.evil"},
    ):
        body = None if verb == "DELETE" else b"{}"
        answer = call(rest_port, verb, path, body, **headers)
        assert_error(answer, 403)
        assert answer.json["error"]["code"] == "PERMISSION_DENIED"


@pytest.mark.parametrize(("verb", "path"), CHANGES)
def test_pages_that_may_and_programs_change_things(rest_port: int, verb: str, path: str) -> None:
    for headers in (
        {},
        {"Origin": ORIGIN},
        {"Sec_Fetch_Site": "cross-site", "Origin": ORIGIN},
        {"Sec_Fetch_Site": "same-origin", "Origin": "http://nexus"},
        {"Sec_Fetch_Site": "none"},
    ):
        assert call(rest_port, verb, path, None if verb == "DELETE" else b"{}", **headers).status == 200


def test_a_form_of_another_page_uploads_nothing(rest_port: int) -> None:
    for headers in ({"Sec_Fetch_Site": "cross-site"}, {"Origin": "http://b.example"}):
        assert_error(post(rest_port, "/models/upload", b"--b--", Content_Type=FORM, **headers), 403)
    assert post(rest_port, "/models/upload", b"--b--", Content_Type=FORM, Origin=ORIGIN).status == 201


def test_pages_from_elsewhere_may_ask(rest_port: int) -> None:
    """What they may read is CORS's matter (test_pages_may_read_answers_and_errors)."""
    for path in ("/predict", "/v1/infer"):
        assert post(rest_port, path, {}, Origin="http://b.example", Sec_Fetch_Site="cross-site").status == 200
    assert get(rest_port, "/v1/models", Origin="http://b.example").status == 200


def test_an_upload_streams_through(envoy: tuple[int, int]) -> None:
    """Larger than any buffer and than max_body_bytes: in pieces, with the boundary, at no cost in memory."""
    port, pid = envoy
    before = psutil.Process(pid).memory_info().rss
    body = os.urandom(MIB) * (16 * MAX_BODY // MIB)
    answer = post(port, "/models/upload", body, Content_Type=FORM)
    assert answer.status == 201, answer
    said = answer.json
    assert (said["types"][0], said["bytes"]) == (FORM, len(body))
    assert said["largest"] <= MIB
    assert said["sha256"] == hashlib.sha256(body).hexdigest()
    assert psutil.Process(pid).memory_info().rss - before < 4 * MAX_BODY


def test_an_upload_needs_a_form(rest_port: int) -> None:
    for kind in ("application/json", "application/octet-stream", ""):
        answer = post(rest_port, "/models/upload", b"{}", Content_Type=kind)
        assert_error(answer, 415)
        assert "multipart/form-data" in answer.message
    assert_error(post(rest_port, "/models/upload?id=iris", b"", Content_Type=FORM), 400)
    assert post(rest_port, "/models/upload", b"", Content_Type="Multipart/Form-Data").status == 201


def test_an_upload_has_a_time_of_its_own(rest_port: int) -> None:
    assert post(rest_port, "/models/upload", b"x", Content_Type=FORM, X_Pause=str(TIMEOUT_S + 0.5)).status == 201
    assert_error(post(rest_port, "/models/upload", b"x", Content_Type=FORM, X_Pause=str(UPLOAD_TIMEOUT_S + 1)), 504)
