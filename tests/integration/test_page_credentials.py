"""The page at / of a server that asks for credentials, in a real Chromium."""

import json
import pathlib
import subprocess
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect

from tests.harness import NEXUS, Server, running_server
from tests.integration.test_page import IRIS, NARROW, WIDE, origin_of

SECONDS = 15_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("credentials")


@pytest.fixture(scope="module")
def server(folder: pathlib.Path) -> Iterator[Server]:
    with running_server(folder, "--auth=required", rest=True) as running:
        yield running


def keys(folder: pathlib.Path, *arguments: str) -> str:
    command = [*NEXUS, "keys", *arguments, "--data-dir", str(folder / "data")]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def new_key(folder: pathlib.Path, name: str, *options: str) -> str:
    """One that the server knows by now: it looks for new ones twice a second."""
    made: str = json.loads(keys(folder, "create", name, *options, "--json"))["key"]
    time.sleep(1)
    return made


@pytest.fixture(params=[WIDE, NARROW], ids=["wide", "narrow"])
def page(request: pytest.FixtureRequest, browser: Browser, server: Server) -> Iterator[Page]:
    """The page at /, once it has been refused."""
    viewport: ViewportSize = request.param
    context = browser.new_context(viewport=viewport)
    opened = context.new_page()
    opened.goto(origin_of(server) + "/")
    expect(opened.get_by_role("heading", name="This server needs an API key")).to_be_visible(timeout=SECONDS)
    yield opened
    context.close()


def give(page: Page, key: str) -> None:
    page.get_by_label("API key", exact=True).fill(key)
    page.get_by_role("button", name="Use this key").click()


def predict(page: Page) -> None:
    page.get_by_role("button", name="Predict", exact=True).click()


def name_of(request: pytest.FixtureRequest) -> str:
    """One that no other key has: names are unique."""
    return request.node.name.replace("[", "-").replace("]", "")  # type: ignore[no-any-return]


def test_with_a_key_it_predicts(
    page: Page, folder: pathlib.Path, request: pytest.FixtureRequest, tmp_path: pathlib.Path
) -> None:
    # The server itself is open to such questions.
    expect(page.locator("#state")).to_contain_text("ready")
    expect(page.locator("#models")).to_contain_text("to callers with an API key")
    expect(page.locator("#forget")).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    page.screenshot(path=tmp_path / "asked.png", full_page=True)
    key = new_key(folder, name_of(request))
    sent = []
    page.on("request", lambda request: sent.append((request.url, request.headers.get("x-api-key"))))
    give(page, key)
    expect(page.locator("#send")).to_be_enabled(timeout=SECONDS)
    expect(page.locator("#credential")).to_be_hidden()
    predict(page)
    expect(page.locator("#label")).to_have_text("0")
    assert {shown for _, shown in sent} == {key}
    # Nowhere but in the header.
    assert not [url for url, _ in sent if key in url]
    assert key not in page.content()
    assert '-H "x-api-key: $NEXUS_API_KEY"' in page.locator("#curl").inner_text()
    page.screenshot(path=tmp_path / "predicted.png", full_page=True)
    # The tab keeps it, and forgets it when told to.
    page.reload()
    expect(page.locator("#send")).to_be_enabled(timeout=SECONDS)
    page.get_by_role("button", name="Forget the API key").click()
    expect(page.get_by_role("heading", name="This server needs an API key")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    expect(page.locator("#models")).to_contain_text("to callers with an API key")


@pytest.mark.parametrize("wrong", ["two words", "schlüssel", " "])
def test_what_no_header_can_have_is_not_sent(page: Page, wrong: str) -> None:
    give(page, wrong)
    expect(page.get_by_text("This is no API key")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0


def test_a_wrong_key_is_said_to_be_wrong(
    page: Page, folder: pathlib.Path, request: pytest.FixtureRequest, tmp_path: pathlib.Path
) -> None:
    give(page, "nxk_000000000000_" + "x" * 43)
    expect(page.get_by_role("heading", name="The server does not accept this API key")).to_be_visible()
    expect(page.locator("#credential-why")).to_contain_text("the API key is not valid")
    page.screenshot(path=tmp_path / "wrong.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    give(page, new_key(folder, name_of(request)))
    expect(page.locator("#send")).to_be_enabled(timeout=SECONDS)


def test_a_key_that_may_not_predict(page: Page, folder: pathlib.Path, request: pytest.FixtureRequest) -> None:
    give(page, new_key(folder, name_of(request), "--scopes", "read"))
    expect(page.locator("#send")).to_be_enabled(timeout=SECONDS)
    predict(page)
    expect(page.get_by_role("alert")).to_contain_text("lacks the scope predict")
    expect(page.get_by_role("heading", name="This API key does not allow that")).to_be_visible()
    # Its models stay.
    expect(page.locator("#models")).to_contain_text("FP32 [-1, 4]")


def test_a_key_that_is_revoked_meanwhile(page: Page, folder: pathlib.Path, request: pytest.FixtureRequest) -> None:
    name = name_of(request)
    give(page, new_key(folder, name))
    expect(page.locator("#send")).to_be_enabled(timeout=SECONDS)
    keys(folder, "revoke", name, "--yes")
    # Refused within a second.
    page.wait_for_timeout(1000)
    predict(page)
    expect(page.get_by_role("alert")).to_contain_text("UNAUTHENTICATED")
    expect(page.get_by_role("heading", name="The server does not accept this API key")).to_be_visible()


def test_where_anonymous_callers_may_predict_nobody_is_asked(browser: Browser, tmp_path: pathlib.Path) -> None:
    with running_server(tmp_path, "--auth=optional", rest=True) as server:
        page = browser.new_page(viewport=WIDE)
        page.goto(origin_of(server) + "/")
        expect(page.locator("#send")).to_be_enabled(timeout=SECONDS)
        predict(page)
        expect(page.locator("#label")).to_have_text("0")
        expect(page.locator("#credential")).to_be_hidden()
        assert len(IRIS) == page.locator("#row").input_value().count(",") + 1
        page.close()
