"""Routes that change the server, in a real Envoy: who may call them, with what bodies, and how uploads go through."""

import hashlib
import os
import pathlib
import re

import psutil
import pytest

from nexus_grpc.rest.bootstrap import EnvoyOptions
from nexus_grpc.rest.http_rules import Binding, http_methods
from tests.harness import free_port
from tests.integration.rest import Answer, Raw, assert_error, call, get, post
from tests.unit.rest.conftest import MAX_BODY, ORIGIN, TIMEOUT_S, UPLOAD_TIMEOUT_S
from tests.unit.rest.live import running_envoy

MIB = 1 << 20
FORM = "multipart/form-data; boundary=b"
# Whatever is not a GET changes the server, but for these: a new route is among the changes unless it is named here.
PREDICTIONS = {
    "/predict",
    "/v1/infer",
    "/api/v1/predict",
    "/api/v1/batch_predict",
    "/v2/models/{model_name}/infer",
    "/v2/models/{model_name}/versions/{model_version}/infer",
    # Triton's clients ask so.
    "/v2/repository/index",
}
NOT_GET = [binding for method in http_methods() for binding in method.bindings if binding.verb != "GET"]
CHANGES = [binding for binding in NOT_GET if binding.template not in PREDICTIONS]
OTHER = "http://b.example"
FOREIGN = [
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site", "Origin": OTHER},
    {"Sec_Fetch_Site": "cross-site", "Origin": OTHER},
    {"Origin": OTHER},
    {"Origin": "null"},
    {"Origin": f"{ORIGIN}.evil"},
]
# curl has none of these headers.
FINE: list[dict[str, str]] = [
    {},
    {"Origin": ORIGIN},
    {"Sec_Fetch_Site": "cross-site", "Origin": ORIGIN},
    {"Sec_Fetch_Site": "same-origin", "Origin": "http://nexus"},
    {"Sec_Fetch_Site": "none"},
]


def send(port: int, binding: Binding, **headers: str) -> Answer:
    path = re.sub(r"\{[a-z_]+\}", "1", binding.template)
    if binding.verb == "DELETE":
        return call(port, binding.verb, path, **headers)
    if binding.template == "/models/upload":
        return call(port, binding.verb, path, b"--b--", Content_Type=FORM, **headers)
    return call(port, binding.verb, path, b"{}", **headers)


def name_of(binding: Binding) -> str:
    return f"{binding.verb} {binding.template}"


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
    assert_error(post(rest_port, "/admin/reload", b"{}", Content_Type="text/plain"), 415)


JSON_BODIES = [
    binding
    for method in http_methods()
    if method.has_body and not method.client_streaming
    for binding in method.bindings
]
V2_BODIES = [binding for binding in JSON_BODIES if binding.template.startswith("/v2/")]


@pytest.mark.parametrize("binding", JSON_BODIES, ids=name_of)
def test_programs_need_not_call_json_json(rest_port: int, binding: Binding) -> None:
    """`curl -d` says that any body is a form's."""
    for kind in ("", "application/x-www-form-urlencoded"):
        answer = send(rest_port, binding, Content_Type=kind)
        assert answer.status == 200, answer
        assert dict(answer.json["fields"])[15].endswith("{}")


@pytest.mark.parametrize("binding", [each for each in JSON_BODIES if each not in V2_BODIES], ids=name_of)
def test_pages_must(rest_port: int, binding: Binding) -> None:
    """Any page may have its visitor's browser send these without a preflight: even our own pages need a type."""
    for kind in ("", "application/x-www-form-urlencoded", "text/plain", FORM):
        for headers in (*FOREIGN, *FINE[1:]):
            answer = send(rest_port, binding, Content_Type=kind, **headers)
            assert_error(answer, 403 if binding in CHANGES and headers in FOREIGN else 415)


@pytest.mark.parametrize("binding", V2_BODIES, ids=name_of)
def test_under_v2_pages_of_other_origins_must(rest_port: int, binding: Binding) -> None:
    """Triton's clients name no type, so neither need pages that may call anyway."""
    for kind in ("", "application/x-www-form-urlencoded", "text/plain", FORM):
        for headers in FOREIGN:
            assert_error(send(rest_port, binding, Content_Type=kind, **headers), 403)
        for headers in FINE:
            assert send(rest_port, binding, Content_Type=kind, **headers).status == 200


def test_pages_that_all_may_call_must_too(tmp_path: pathlib.Path) -> None:
    """cors_origins "*" lets pages of all origins change things, by JSON, after a preflight."""
    port = free_port()
    with running_envoy(EnvoyOptions(port=port, cors_origins=("*",), access_log=""), tmp_path):
        for headers in FOREIGN:
            assert_error(post(port, "/admin/reload", b"{}", Content_Type="", **headers), 415)


def test_the_predictions_are_routes() -> None:
    assert {binding.template for binding in NOT_GET} >= PREDICTIONS
    assert {method.name for method in http_methods() if method.is_change} >= {"ModelsUpload", "SystemReload"}


@pytest.mark.parametrize("binding", CHANGES, ids=name_of)
def test_pages_from_elsewhere_change_nothing(rest_port: int, binding: Binding) -> None:
    for headers in FOREIGN:
        answer = send(rest_port, binding, **headers)
        assert_error(answer, 403)
        assert answer.is_v2 or answer.json["error"]["code"] == "PERMISSION_DENIED"
        assert "cors_origins" in answer.message


@pytest.mark.parametrize("binding", CHANGES, ids=name_of)
def test_pages_that_may_and_programs_change_things(rest_port: int, binding: Binding) -> None:
    for headers in FINE:
        answer = send(rest_port, binding, **headers)
        assert answer.status == (201 if binding.template == "/models/upload" else 200), (headers, answer)


@pytest.mark.parametrize("binding", CHANGES, ids=name_of)
def test_a_credential_in_a_header_is_no_forgery(rest_port: int, binding: Binding) -> None:
    """No page can have its visitor's browser send one elsewhere, so the server's own pages need no Sec-Fetch-Site."""
    for credential in ({"X_Api_Key": "k"}, {"Authorization": "Bearer t"}, {"Authorization": "bearer t"}):
        answer = send(rest_port, binding, Origin=OTHER, **credential)
        assert answer.status == (201 if binding.template == "/models/upload" else 200), (credential, answer)
    # What a browser writes by itself, of a URL with a name in it or of what its user once typed.
    for written in ("Basic bmV4dXM6eA==", "Negotiate x", "Bearer"):
        assert_error(send(rest_port, binding, Origin=OTHER, Authorization=written), 403)


def test_another_page_may_not_send_a_credential(rest_port: int) -> None:
    """What the test above rests on: the preflight of a page that is not named gets no permission."""
    asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "x-api-key"}
    answer = call(rest_port, "OPTIONS", "/admin/reload", Origin=OTHER, **asked)
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_what_a_form_can_send_changes_nothing(rest_port: int) -> None:
    """Without a preflight, a page's form or script can send these types, or none."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", FORM, ""):
        for headers in FOREIGN:
            body = b"" if not kind else b"--b--"
            assert_error(post(rest_port, "/admin/reload", body, Content_Type=kind, **headers), 403)


@pytest.mark.parametrize("template", sorted(each for each in PREDICTIONS if each.startswith("/v2")))
def test_pages_from_elsewhere_have_to_ask_first(rest_port: int, template: str) -> None:
    """The protocol's clients need no content type; what a page can send without a preflight is refused all the same."""
    path = template.replace("{model_name}", "m").replace("{model_version}", "1")
    for kind in ("text/plain", "application/x-www-form-urlencoded", FORM, "application/octet-stream", ""):
        for headers in FINE:
            assert post(rest_port, path, b"{}", Content_Type=kind, **headers).status == 200
        for headers in FOREIGN:
            answer = post(rest_port, path, b"{}", Content_Type=kind, **headers)
            assert_error(answer, 403)
            assert "cors_origins" in answer.message


@pytest.mark.parametrize("template", sorted(PREDICTIONS))
def test_pages_from_elsewhere_may_ask(rest_port: int, template: str) -> None:
    """What they may read is CORS's matter (test_pages_may_read_answers_and_errors)."""
    for headers in (*FOREIGN, *FINE):
        assert send(rest_port, Binding("POST", template), **headers).status == 200
    assert get(rest_port, "/v1/models", Origin=OTHER).status == 200


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


def test_an_upload_finds_the_front_that_is_there(rest_port: int) -> None:
    """One of the two is away: whichever Envoy tries first, the body's beginning is still there for the other."""
    body = os.urandom(MIB) * (4 * MAX_BODY // MIB)
    for _ in range(20):
        answer = post(rest_port, "/models/upload", body, Content_Type=FORM)
        assert (answer.status, answer.json["bytes"]) == (201, len(body))


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
