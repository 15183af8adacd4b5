"""Uploads that must not get in, by gRPC and by REST: each is refused with its status and the common shape of an error,
nothing of it stays, and the server serves on."""

import contextlib
import pathlib
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import psutil
import pytest

from nexus_grpc.pb.nexus.v1.models_pb2 import UploadHeader, UploadRequest
from tests.integration import bad_models as bad
from tests.integration.rest import Raw, post
from tests.integration.uploading import (
    BOUNDARY,
    FORM,
    PATH,
    REQUEST_ID,
    Refused,
    Site,
    file_part,
    form,
    form_of,
    held_back,
    messages,
    part,
    refusal_in,
    refusal_of,
    running_site,
)
from tests.lifecycle import times, wait_for

MIB = 1 << 20
SIZE_MAX = 4 * MIB
GOOD = times(5)
HEAD = b"POST /models/upload HTTP/1.1\r\nHost: nexus\r\nContent-Type: " + FORM.encode() + b"\r\n"
INVALID, REFUSED = ("INVALID_ARGUMENT", 400), ("FAILED_PRECONDITION", 422)
TOO_LARGE, BUSY = ("RESOURCE_EXHAUSTED", 413), ("RESOURCE_EXHAUSTED", 429)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    limits = (f"--upload-max-bytes={SIZE_MAX}", "--uploads-max=2", "--upload-seconds=5")
    trial = ("--trial-seconds=5", "--trial-memory=1GiB")
    with running_site(tmp_path_factory.mktemp("refused"), *limits, *trial) as site:
        yield site


def assert_refused(refused: Refused, status: tuple[str, int], reason: str, words: str) -> None:
    assert refused.status in status, refused
    assert refused.reason == reason, refused
    assert words in refused.message, refused
    assert refused.request_id == REQUEST_ID
    for secret in (str(pathlib.Path.home()), "/tmp", ".nexus-staging", "Traceback"):
        assert secret not in refused.message, refused


def trials(site: Site) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(site.server.process.pid).children():
        with contextlib.suppress(psutil.Error):
            if "trial" in " ".join(child.cmdline()):
                found.append(child)
    return found


def bomb() -> bytes:
    return bad.dims_bomb().SerializeToString()


BAD_FILES: dict[str, tuple[Callable[[], bytes], tuple[str, int], str, str]] = {
    "empty": (lambda: b"", INVALID, "NOT_ONNX", "the file is empty"),
    "garbage": (lambda: b"this is no model", INVALID, "NOT_ONNX", "not an ONNX model"),
    "a pickle": (lambda: pickle.dumps({"w": [1.5]}), INVALID, "NOT_ONNX", "from skl2onnx import to_onnx"),
    "a page": (lambda: b"<html>" * 1000, INVALID, "NOT_ONNX", "not an ONNX model"),
    "truncated": (lambda: GOOD[:-30], INVALID, "NOT_ONNX", "truncated"),
    "future opset": (lambda: bad.future_opset().SerializeToString(), REFUSED, "MODEL_REFUSED", "opset 999"),
    "custom op": (lambda: bad.custom_op().SerializeToString(), REFUSED, "MODEL_REFUSED", "com.example"),
    "external data": (lambda: bad.external_data().SerializeToString(), REFUSED, "MODEL_REFUSED", "in another file"),
    "dims bomb": (bomb, REFUSED, "MODEL_REFUSED", "4398046511104 bytes"),
    "crash": (lambda: bad.crashes_the_loader().SerializeToString(), REFUSED, "MODEL_REFUSED", "SIGSEGV"),
    "memory": (lambda: bad.eats_memory(1 << 40).SerializeToString(), REFUSED, "MODEL_REFUSED", "trial_memory"),
    "too large": (lambda: times(5, megabytes=5), TOO_LARGE, "TOO_LARGE", "upload_max_bytes"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(site: Site, name: str) -> None:
    build, status, reason, words = BAD_FILES[name]
    content = build()
    with site.unchanged():
        assert_refused(site.refused_by_grpc(messages(content, id="bad")), status, reason, words)
        # As a model of its own, and as a version of one that serves.
        assert_refused(site.refused_by_rest(form_of(content, id="bad")), status, reason, words)
        assert_refused(site.refused_by_rest(form_of(content, id="times")), status, reason, words)


def test_a_model_that_never_ends(site: Site) -> None:
    content = bad.never_ends(batchable=True).SerializeToString()
    with site.unchanged(), ThreadPoolExecutor(2) as pool:
        by_rest = pool.submit(site.refused_by_rest, form_of(content, id="endless"))
        by_grpc = pool.submit(site.refused_by_grpc, messages(content, id="endless"))
        for refused in (by_rest.result(), by_grpc.result()):
            assert_refused(refused, REFUSED, "MODEL_REFUSED", "longer than 5 s (trial_seconds)")
    assert not trials(site)


BAD_HEADERS: dict[str, tuple[dict[str, Any], tuple[str, int], str, str]] = {
    "id with ..": ({"id": "../evil"}, INVALID, "INVALID_INPUT", "the id must be"),
    "id with a slash": ({"id": "a/b"}, INVALID, "INVALID_INPUT", "the id must be"),
    "hidden id": ({"id": ".nexus-staging"}, INVALID, "INVALID_INPUT", "the id must be"),
    "id of 10 kB": ({"id": "a" * 10_000}, INVALID, "INVALID_INPUT", "the id must be"),
    "empty id": ({"id": ""}, INVALID, "INVALID_INPUT", "the id must be"),
    "reserved id": ({"id": "upload"}, INVALID, "INVALID_INPUT", "the id must be"),
    "plus": ({"id": "lost+found"}, INVALID, "INVALID_INPUT", "the id must be"),
    "NUL": ({"id": "a\0"}, INVALID, "INVALID_INPUT", "the id must be"),
    "long name": ({"id": "x", "name": "n" * 201}, INVALID, "INVALID_INPUT", "name"),
    "name in lines": ({"id": "x", "name": "a\nb"}, INVALID, "INVALID_INPUT", "name"),
    "long version": ({"id": "x", "version": "9" * 65}, INVALID, "INVALID_INPUT", "version"),
    "wrong sha256": ({"id": "x", "sha256": "0" * 64}, INVALID, "SHA256_MISMATCH", "send it again"),
    "no sha256": ({"id": "x", "sha256": "abc"}, INVALID, "INVALID_INPUT", "64 hexadecimal digits"),
    "wrong size": ({"id": "x", "size_bytes": 7}, INVALID, "SIZE_MISMATCH", "send it again"),
    "size too large": ({"id": "x", "size_bytes": SIZE_MAX + 1}, TOO_LARGE, "TOO_LARGE", "upload_max_bytes"),
    "unnamed label": ({"id": "x", "labels": {"": "a"}}, INVALID, "INVALID_INPUT", "label"),
    "long label": ({"id": "x", "labels": {"a": "b" * 2000}}, INVALID, "INVALID_INPUT", "labels"),
    "a version that is there": ({"id": "times", "version": "v1"}, ("ALREADY_EXISTS", 409), "ALREADY_EXISTS", "1"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_bad_headers(site: Site, name: str) -> None:
    header, status, reason, words = BAD_HEADERS[name]
    with site.unchanged():
        assert_refused(site.refused_by_grpc(messages(GOOD, **header)), status, reason, words)
        assert_refused(site.refused_by_rest(form_of(GOOD, **header)), status, reason, words)
        # The file before the fields.
        late = form_of(GOOD, **header).removesuffix(f"--{BOUNDARY}--\r\n".encode()).split(file_part(GOOD))[0]
        assert_refused(site.refused_by_rest(form(file_part(GOOD), late)), status, reason, words)


ID, FILE = part("id", "x"), file_part(GOOD)
BAD_FORMS: dict[str, tuple[bytes, str, int, str]] = {
    "no file": (form(ID), FORM, 400, "'file' is missing"),
    "no id": (form(FILE), FORM, 400, "'id' is missing"),
    "two files": (form(ID, FILE, file_part(GOOD, "model")), FORM, 400, "two files"),
    "one file twice": (form(ID, FILE, FILE), FORM, 400, "two files"),
    "two ids": (form(ID, ID, FILE), FORM, 400, "twice"),
    "unknown field": (form(ID, part("verison", "1"), FILE), FORM, 400, "did you mean 'version'?"),
    "the file as text": (form(ID, part("file", GOOD)), FORM, 400, "send it as one"),
    "a text as file": (form(file_part(b"x", "id"), FILE), FORM, 400, "is text"),
    "another boundary": (form(ID, FILE), "multipart/form-data; boundary=other", 400, "begin with the boundary"),
    "no boundary": (form(ID, FILE), "multipart/form-data", 400, "boundary"),
    "a boundary of 71": (form(ID, FILE), f"multipart/form-data; boundary={'b' * 71}", 400, "1 to 70"),
    "cut off": (form(ID, FILE)[:-20], FORM, 400, "ends before"),
    "empty": (b"", FORM, 400, "empty"),
    "nothing in it": (form(), FORM, 400, ""),
    "no form": (b"garbage" * 100, FORM, 400, "boundary"),
    "labels": (form(ID, part("labels", "a=b"), FILE), FORM, 400, "JSON object"),
    "store_only": (form(ID, part("store_only", "perhaps"), FILE), FORM, 400, "true or false"),
    "size": (form(ID, part("size_bytes", "1e3"), FILE), FORM, 400, "whole number"),
    "no UTF-8": (form(part("id", b"\xff"), FILE), FORM, 400, "UTF-8"),
    "a large field": (form(ID, part("name", "x" * (65 << 10)), FILE), FORM, 413, "more than"),
    "a large header": (form(part("id", "x", f"; a={'x' * 5000}"), FILE), FORM, 400, "well-formed"),
    "many headers": (form(part("id", "x", "\r\nA: b" * 20), FILE), FORM, 400, "well-formed"),
    "base64": (form(ID, part("file", "eA==", '; filename="f"\r\nContent-Transfer-Encoding: base64')), FORM, 400, "as"),
    "JSON": (b'{"id": "x"}', "application/json", 415, "multipart/form-data"),
    "bytes": (GOOD, "application/octet-stream", 415, "multipart/form-data"),
    "mixed": (form(ID, FILE), f"multipart/mixed; boundary={BOUNDARY}", 415, "multipart/form-data"),
}


@pytest.mark.parametrize("name", BAD_FORMS)
def test_bad_forms(site: Site, name: str) -> None:
    body, content_type, status, words = BAD_FORMS[name]
    with site.unchanged():
        refused = site.refused_by_rest(body, content_type)
    assert (refused.status, refused.request_id) == (status, REQUEST_ID), refused
    assert words in refused.message, refused


def test_bad_streams(site: Site) -> None:
    header, chunk = UploadRequest(header=UploadHeader(id="x")), UploadRequest(chunk=GOOD)
    large = UploadRequest(chunk=b"x" * (SIZE_MAX + 1))
    headers = ([header], [header, header, chunk], [header, chunk, header])
    with site.unchanged():
        for stream in ([], [chunk], [UploadRequest()], [header, large], *headers):
            assert site.refused_by_grpc(iter(stream)).status == "INVALID_ARGUMENT", stream


def test_too_large_without_a_length(site: Site) -> None:
    """Chunked: nothing announces how much it is. Just so much is fine, though it is no model."""
    body = form_of(b"x" * (SIZE_MAX + 1), id="x")
    with site.unchanged():
        with Raw(site.port) as raw:
            raw.send(HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
            with contextlib.suppress(OSError):
                for offset in range(0, len(body), MIB):
                    piece = body[offset : offset + MIB]
                    raw.send(b"%x\r\n" % len(piece) + piece + b"\r\n")
                raw.send(b"0\r\n\r\n")
            answer = raw.answers()
        assert answer.startswith(b"HTTP/1.1 413"), answer[:200]
        assert b'"reason": "TOO_LARGE"' in answer
        assert site.refused_by_rest(form_of(b"x" * SIZE_MAX, id="x")).reason == "NOT_ONNX"


def test_a_client_that_goes_away_halfway(site: Site) -> None:
    body = form_of(b"x" * MIB, id="half")
    with site.unchanged():
        for _ in range(3):
            with Raw(site.port) as raw:
                raw.send(HEAD + b"Content-Length: %d\r\n\r\n" % (len(body) * 2) + body[:-100])
                wait_for(site.staged)
            wait_for(lambda: not site.staged())
            end = threading.Event()
            call = site.call.future(held_back(messages(b"x" * MIB, id="half"), end))
            wait_for(site.staged)
            call.cancel()
            end.set()
            wait_for(lambda: not site.staged())
    # And its place is free again.
    assert site.refused_by_rest(form_of(b"x", id="half")).reason == "NOT_ONNX"


@pytest.mark.parametrize("is_complete", [False, True], ids=["halfway", "in its trial"])
def test_a_front_that_is_killed(site: Site, is_complete: bool) -> None:
    end = threading.Event()
    with site.unchanged():
        content = bad.never_ends(batchable=False).SerializeToString()
        stream = messages(content, id="half")
        call = site.call.future(stream if is_complete else held_back(stream, end))
        wait_for(lambda: trials(site) if is_complete else site.staged())
        [front] = site.server.children("front")
        front.kill()
        assert isinstance(call.exception(20), grpc.RpcError)
        assert call.code() == grpc.StatusCode.UNAVAILABLE
        end.set()
        wait_for(lambda: [each.pid for each in site.server.children("front")] not in ([], [front.pid]))
        wait_for(lambda: post(site.port, "/predict", {"model_id": "times", "features": [1, 2]}).status == 200)
        wait_for(lambda: not trials(site))


@pytest.mark.parametrize("version", ["2", "1.0.0", ""])
def test_two_at_once_of_one_version(site: Site, version: str) -> None:
    """One gets in, whole; the other is refused. (Without a version both get in, each with a number of its own.)"""
    model = f"twins-{version or 'free'}"
    for attempt in range(3):
        name = f"{model}-{attempt}"
        header = {"id": name, "version": version} if version else {"id": name}
        together = threading.Barrier(2)

        def send(factor: int, header: dict[str, str] = header, together: threading.Barrier = together) -> int:
            together.wait(20)
            return site.by_rest(times(factor), **header).status

        with ThreadPoolExecutor(2) as pool:
            statuses = {factor: pool.submit(send, factor) for factor in (3, 4)}
            ended = {factor: status.result() for factor, status in statuses.items()}
        versions = site.admin.models("GetRecord", id=name).versions
        if not version:
            assert sorted(ended.values()) == [201, 201]
            assert {each.version for each in versions} == {"1", "2"}
            continue
        assert sorted(ended.values()) == [201, 409]
        [winner] = [factor for factor, status in ended.items() if status == 201]
        [only] = versions
        assert site.predict(name) == (only.version, winner)
        assert (site.repository / name / only.version / "model.onnx").read_bytes() == times(winner)
        assert [entry.action for entry in site.admin.models("History", id=name).entries] == ["upload"]
    wait_for(lambda: not site.staged())


def test_more_than_uploads_max(site: Site) -> None:
    end = threading.Event()
    with site.unchanged():
        held = [site.call.future(held_back(messages(b"x", id="held"), end)) for _ in range(2)]
        try:
            wait_for(lambda: len(site.staged()) == 2)
            by_grpc = site.refused_by_grpc(messages(GOOD, id="third"))
            assert_refused(by_grpc, BUSY, "OVERLOADED", "uploads_max")
            by_rest = site.refused_by_rest(form_of(GOOD, id="third"))
            assert_refused(by_rest, BUSY, "OVERLOADED", "uploads_max")
            # The others do not wait behind them.
            assert site.predict("times") == ("1", 1)
        finally:
            end.set()
        assert {refusal_of(call).reason for call in held} == {"NOT_ONNX"}


def test_slower_than_upload_seconds(site: Site) -> None:
    """By REST the answer comes although the request has not ended."""
    end = threading.Event()
    with site.unchanged():
        call = site.call.future(held_back(messages(b"x", id="slow"), end), metadata=(("x-request-id", REQUEST_ID),))
        with Raw(site.port) as raw:
            raw.send(HEAD + b"Content-Length: 100000\r\n\r\n" + form_of(b"x" * 1000, id="slow")[:-100])
            answer = raw.answers(15)
        assert answer.startswith(b"HTTP/1.1 504"), answer
        assert b"upload_seconds" in answer
        assert b'"request_id"' in answer
        assert_refused(refusal_of(call), ("DEADLINE_EXCEEDED", 504), "DEADLINE_PASSED", "upload_seconds")
        end.set()


def test_pages_of_others_upload_nothing(site: Site) -> None:
    with site.unchanged():
        for headers in ({"Sec_Fetch_Site": "cross-site"}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
            answer = post(site.port, PATH, form_of(GOOD, id="evil"), Content_Type=FORM, **headers)
            assert refusal_in(answer).status == 403
