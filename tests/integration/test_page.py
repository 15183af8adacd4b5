"""The pages at / and /docs in a real Chromium, and the API as a browser's scripts see it: gRPC-web and CORS."""

import functools
import http.server
import pathlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect

from nexus_grpc.pb.nexus.v1 import inference_pb2 as pb
from tests.harness import Server, running_server

# No sandbox: tests may run as root in a container. The rest keeps Chromium from talking to anybody else.
WIDE, NARROW = ViewportSize(width=1280, height=900), ViewportSize(width=400, height=800)
IRIS = [5.1, 3.5, 1.4, 0.2]
FETCH = """async ([url, options]) => {
  try {
    const response = await fetch(url, {...options, body: options.body && (typeof options.body === "string"
      ? options.body : new Uint8Array(options.body))});
    return {status: response.status, headers: Object.fromEntries(response.headers),
      bytes: [...new Uint8Array(await response.arrayBuffer())]};
  } catch (failure) { return {failure: String(failure)}; }
}"""


class Watched:
    """A page, what its console said, and where it sent requests."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.urls: list[str] = []
        page.on(
            "console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.urls.append(request.url))

    def assert_quiet(self, origin: str) -> None:
        assert self.complaints == []
        assert [url for url in self.urls if not url.startswith(origin + "/")] == []


def origin_of(server: Server) -> str:
    return f"http://127.0.0.1:{server.rest_port}"


@pytest.fixture(params=[WIDE, NARROW], ids=["wide", "narrow"])
def watched(request: pytest.FixtureRequest, browser: Browser, rest_server: Server) -> Iterator[Watched]:
    """The page at /, once the form is filled in."""
    context = browser.new_context(viewport=request.param)
    opened = Watched(context.new_page())
    opened.page.goto(origin_of(rest_server) + "/")
    expect(opened.page.locator("#send")).to_be_enabled(timeout=15_000)
    yield opened
    context.close()


def predict(page: Page, model: str) -> None:
    page.get_by_label("Model", exact=True).select_option(model)
    expect(page.locator("#send")).to_be_enabled()
    page.get_by_role("button", name="Predict", exact=True).click()


def test_the_page_loads_and_predicts(watched: Watched, rest_server: Server, tmp_path: pathlib.Path) -> None:
    page = watched.page
    expect(page.locator("#state")).to_contain_text("ready")
    expect(page.locator("#facts")).to_contain_text("uptime")
    expect(page.locator("#models")).to_contain_text("FP32 [-1, 4]")
    predict(page, "iris")
    expect(page.locator("#label")).to_have_text("0")
    expect(page.locator(".bars tbody tr")).to_have_count(3)
    expect(page.locator(".bars .best .number")).to_contain_text("%")
    expect(page.locator("#request-id")).not_to_be_empty()
    expect(page.locator(".timing")).to_contain_text(re.compile(r"total[\d.]+ (µs|ms)"))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    page.screenshot(path=tmp_path / "predicted.png", full_page=True)
    watched.assert_quiet(origin_of(rest_server))


@pytest.mark.parametrize("watched", [WIDE], indirect=True, ids=["wide"])
def test_every_demo_model_accepts_its_example(watched: Watched, rest_server: Server) -> None:
    page = watched.page
    models = page.locator("#model option").all_inner_texts()
    assert {"iris", "digits_cnn", "text_echo", "two_inputs", "all_types"} <= set(models)
    for model in ("iris", "iris_forest", "digits_cnn", "text_echo", "two_inputs", "all_types", "counts_i64", "scalar"):
        predict(page, model)
        expect(page.locator("#answer")).to_contain_text("The answer as JSON")
        expect(page.locator("#answer code").last).to_contain_text(f'"model_id": "{model}"')
    watched.assert_quiet(origin_of(rest_server))


@pytest.mark.parametrize("watched", [WIDE], indirect=True, ids=["wide"])
def test_errors_are_shown(watched: Watched, tmp_path: pathlib.Path) -> None:
    page = watched.page
    page.get_by_label("Model", exact=True).select_option("iris")
    page.get_by_label("Features").fill("1, 2, 3")
    page.get_by_role("button", name="Predict", exact=True).click()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("expected 4 features, got 3")
    expect(alert).to_contain_text("INVALID_ARGUMENT")
    expect(alert).to_contain_text("request id")
    page.screenshot(path=tmp_path / "refused.png", full_page=True)
    page.get_by_label("Features").fill("1, two")
    page.get_by_role("button", name="Predict", exact=True).click()
    expect(alert).to_contain_text("Feature 2 is not a number: two")
    expect(page.get_by_role("button", name="Copy")).to_be_disabled()


@pytest.mark.parametrize("watched", [WIDE], indirect=True, ids=["wide"])
def test_the_curl_line_is_what_was_sent(watched: Watched) -> None:
    page = watched.page
    page.get_by_label("Model", exact=True).select_option("text_echo")
    page.get_by_label("Texts").fill("it's <b>bold</b>")
    line = page.locator("#curl").inner_text()
    assert """"texts":["it'\\''s <b>bold</b>"]""" in line
    page.get_by_label("stage timings").focus()
    page.keyboard.press("Space")
    assert "nexus_timing" not in page.locator("#curl").inner_text()
    page.get_by_label("Texts").press("Control+Enter")
    # Text from outside is shown as text: were it HTML, the angle brackets would be gone.
    expect(page.locator("#label")).to_have_text("it's <b>bold</b>")


def test_a_server_that_goes_away(browser: Browser, tmp_path: pathlib.Path) -> None:
    with running_server(tmp_path, rest=True) as server:
        page = browser.new_page(viewport=NARROW)
        page.goto(origin_of(server) + "/")
        expect(page.locator("#send")).to_be_enabled(timeout=15_000)
        server.stop()
        page.get_by_role("button", name="Predict", exact=True).click()
        expect(page.get_by_role("alert")).to_contain_text("The server does not answer.")
        expect(page.locator("#state")).to_contain_text("down", timeout=15_000)
        page.close()


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_docs(browser: Browser, rest_server: Server, viewport: ViewportSize, tmp_path: pathlib.Path) -> None:
    watched = Watched(browser.new_page(viewport=viewport))
    page = watched.page
    page.goto(origin_of(rest_server) + "/docs")
    expect(page.locator("#post-predict")).to_contain_text("features")
    expect(page.locator("#post-predict")).to_contain_text(f"curl '{origin_of(rest_server)}/predict'")
    expect(page.locator("#get-models-id")).to_contain_text("/models/iris")
    paths = page.evaluate("fetch('/openapi.json').then(r => r.json()).then(doc => Object.keys(doc.paths))")
    for path in paths:
        expect(page.locator("#operations h3", has_text=path).first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    page.screenshot(path=tmp_path / "docs.png", full_page=True)
    watched.assert_quiet(origin_of(rest_server))
    page.close()


def grpc_web(page: Page, url: str, message: bytes) -> tuple[dict[str, str], bytes, dict[str, str]]:
    """One unary gRPC-web call from the page's own script: response headers, message bytes, trailers."""
    frame = b"\0" + len(message).to_bytes(4, "big") + message
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    answer = page.evaluate(FETCH, [url, {"method": "POST", "headers": headers, "body": list(frame)}])
    assert answer.get("status") == 200, answer
    rest, reply, trailers = bytes(answer["bytes"]), b"", dict(answer["headers"])
    while rest:
        flags, length = rest[0], int.from_bytes(rest[1:5], "big")
        content, rest = rest[5 : 5 + length], rest[5 + length :]
        if flags & 0x80:
            lines = content.decode().strip().split("\r\n")
            trailers.update((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
        else:
            reply += content
    return answer["headers"], reply, trailers


def test_grpc_web_from_a_page(watched: Watched) -> None:
    request = pb.PredictRequest(model_id="iris", features=IRIS)
    headers, reply, trailers = grpc_web(watched.page, "/nexus.v1.Inference/Predict", request.SerializeToString())
    assert headers["content-type"].startswith("application/grpc-web")
    assert trailers["grpc-status"] == "0"
    response = pb.PredictResponse.FromString(reply)
    assert list(response.prediction) == [0.0]
    assert sum(response.probabilities) == pytest.approx(1)

    request.model_id = "nobody"
    _, reply, trailers = grpc_web(watched.page, "/nexus.v1.Inference/Predict", request.SerializeToString())
    assert reply == b""
    assert trailers["grpc-status"] == "5"
    assert "nobody" in trailers["grpc-message"]


@pytest.fixture
def elsewhere(tmp_path: pathlib.Path) -> Iterator[str]:
    """Another origin: an empty page on a port of its own."""
    (tmp_path / "index.html").write_text("<!doctype html><title>elsewhere</title>")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{site.server_port}"
        site.shutdown()
        thread.join()


def cross_origin(page: Page, server: Server) -> dict[str, Any]:
    """POST /predict with a header and a content type that make the browser ask for permission first."""
    headers = {"content-type": "application/json", "x-request-id": "from-elsewhere"}
    body = '{"model_id": "iris", "features": [5.1, 3.5, 1.4, 0.2]}'
    options = {"method": "POST", "headers": headers, "body": body}
    answer: dict[str, Any] = page.evaluate(FETCH, [origin_of(server) + "/predict", options])
    return answer


def test_another_origin_is_let_in_only_when_named(
    browser: Browser, elsewhere: str, rest_server: Server, tmp_path: pathlib.Path
) -> None:
    page = browser.new_page()
    page.goto(elsewhere + "/index.html")
    assert "Failed to fetch" in str(cross_origin(page, rest_server)["failure"])
    with running_server(tmp_path, f"--cors-origins={elsewhere}", rest=True) as server:
        answer = cross_origin(page, server)
        assert answer.get("status") == 200, answer
        assert answer["headers"]["x-request-id"] == "from-elsewhere"
        message = pb.PredictRequest(model_id="iris", features=IRIS).SerializeToString()
        _, reply, trailers = grpc_web(page, origin_of(server) + "/nexus.v1.Inference/Predict", message)
        assert trailers["grpc-status"] == "0"
        assert list(pb.PredictResponse.FromString(reply).prediction) == [0.0]
    page.close()
