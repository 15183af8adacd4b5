"""What the page at / says of models, in a real Chromium: one request for all, which version is active, decisions;
on a server that lets anonymous callers in, at their rate.
"""

import pathlib
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.harness import MODELS, Server, copy_models, running_server
from tests.integration.access import make_key
from tests.integration.numbered import add_version
from tests.integration.rest import post
from tests.integration.test_page import NARROW, WIDE, Watched, origin_of, predict

# More than anonymous callers may ask for in a minute.
MANY = 110
CONFIG = """
parameters { key: "labels" value { string_value: "fine,odd,fraud" } }
parameters { key: "positive_class" value { string_value: "fraud" } }
parameters { key: "decision_threshold" value { string_value: "0.5" } }
parameters { key: "decision_positive" value { string_value: "block" } }
parameters { key: "decision_negative" value { string_value: "allow" } }
"""
SECONDS = 15_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("page-models")


@pytest.fixture(scope="module")
def server(folder: pathlib.Path) -> Iterator[Server]:
    repository = copy_models(folder / "models", "iris")
    for number in range(MANY):
        add_version(repository, f"many-{number:03}", 1)
    shutil.copytree(MODELS / "iris", repository / "decides")
    (repository / "decides" / "config.pbtxt").write_text(CONFIG)
    for version in (1, 2, 3):
        add_version(repository, "several", version)
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    admin = make_key(folder, "admin", scopes=_all())
    with running_server(folder, "--auth=optional", repository=repository, rest=True) as running:
        for version, verb in (("2", "activate"), ("3", "load"), ("1", "load")):
            answer = post(running.rest_port, f"/v1/models/several/{verb}", {"version": version}, x_api_key=admin)
            assert answer.status == 200, answer
        yield running


def _all() -> object:
    from nexus_grpc.access.identity import Scope

    return Scope.ADMIN | Scope.READ | Scope.PREDICT


@pytest.fixture(params=[WIDE, NARROW], ids=["wide", "narrow"])
def watched(request: pytest.FixtureRequest, browser: Browser, server: Server) -> Iterator[Watched]:
    context = browser.new_context(viewport=request.param)
    opened = Watched(context.new_page())
    opened.page.goto(origin_of(server) + "/")
    expect(opened.page.locator("#send")).to_be_enabled(timeout=SECONDS)
    yield opened
    context.close()


def tags(page: Page, model: str) -> list[str]:
    return (
        page.locator("#models li", has=page.get_by_role("button", name=model, exact=True))
        .locator(".tag")
        .all_inner_texts()
    )


def test_one_request_tells_of_all_models(watched: Watched, server: Server, tmp_path: pathlib.Path) -> None:
    page = watched.page
    expect(page.locator("#model-count")).to_have_text(str(MANY + 4))
    asked = [url.removeprefix(origin_of(server)) for url in watched.urls if "/models" in url or "overview" in url]
    assert asked == ["/v1/overview"]
    assert tags(page, "several") == ["v1", "v2 active", "v3"]
    assert tags(page, "many-007") == ["v1 active"]
    assert tags(page, "broken") == ["v1 unavailable"]
    # Nothing else is called so.
    assert page.locator("#models .tag.active").count() == MANY + 3
    page.get_by_label("Model", exact=True).select_option("several")
    assert page.locator("#version option").all_inner_texts() == ["active (v2)", "1", "2", "3"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    page.screenshot(path=tmp_path / "models.png")
    watched.assert_quiet(origin_of(server))


def test_the_class_and_the_decision_are_the_servers(watched: Watched, tmp_path: pathlib.Path) -> None:
    page = watched.page
    page.get_by_label("Model", exact=True).select_option("decides")
    page.get_by_label("Features").fill("6.7, 3.0, 5.2, 2.3")
    page.get_by_role("button", name="Predict", exact=True).click()
    expect(page.locator("#label")).to_have_text("fraud")
    expect(page.locator("#decision")).to_have_text("block")
    expect(page.locator("#answer")).to_contain_text("at the threshold 0.5")
    page.locator("#answer").screenshot(path=tmp_path / "decided.png")
    page.get_by_label("Features").fill("5.1, 3.5, 1.4, 0.2")
    page.get_by_role("button", name="Predict", exact=True).click()
    expect(page.locator("#decision")).to_have_text("allow")
    predict(page, "iris")
    expect(page.locator("#label")).to_have_text("0")
    expect(page.locator("#decision")).to_have_count(0)


@pytest.mark.parametrize("watched", [WIDE], indirect=True, ids=["wide"])
def test_who_has_a_key_can_say_so(watched: Watched, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Anonymous callers are not asked for one here, and have a rate."""
    page = watched.page
    expect(page.locator("#facts")).to_contain_text("authoptional")
    expect(page.locator("#credential")).to_be_hidden()
    key = make_key(folder, "of the page", models=("iris", "several"))
    page.get_by_role("button", name="Use an API key").click()
    expect(page.get_by_label("API key", exact=True)).to_be_focused()
    page.screenshot(path=tmp_path / "offered.png")
    page.wait_for_timeout(700)  # the server looks for new keys twice a second
    page.get_by_label("API key", exact=True).fill(key)
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#model-count")).to_have_text("2", timeout=SECONDS)
    predict(page, "iris")
    expect(page.locator("#label")).to_have_text("0")
    page.get_by_role("button", name="Forget the API key").click()
    expect(page.locator("#model-count")).to_have_text(str(MANY + 4), timeout=SECONDS)
    expect(page.get_by_role("button", name="Use an API key")).to_be_visible(timeout=SECONDS)


@pytest.mark.parametrize("watched", [WIDE], indirect=True, ids=["wide"])
def test_what_is_activated_meanwhile_is_seen(watched: Watched, server: Server, folder: pathlib.Path) -> None:
    page = watched.page
    admin = make_key(folder, "second admin", scopes=_all())
    page.wait_for_timeout(700)
    assert post(server.rest_port, "/v1/models/several/activate", {"version": "3"}, x_api_key=admin).status == 200
    several = page.locator("#models li", has=page.get_by_role("button", name="several", exact=True))
    expect(several.locator(".tag.active")).to_have_text("v3 active", timeout=SECONDS)
    assert post(server.rest_port, "/v1/models/several/activate", {"version": "2"}, x_api_key=admin).status == 200
