"""One bad entry of the repository spoils nothing: neither the start, nor the registry, nor polling, nor a reload."""

import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.rest import Answer, assert_error, call, get, post
from tests.integration.uploading import Site, running_site
from tests.lifecycle import NAME, put, refused, times, wait_for

POLL_SECONDS = 0.3


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("entries")
    repository = folder / "models"
    for name in ("lost+found", "scripts", ".cache", "zz_broken/1", "odd/1", "halfway/2", "piped"):
        (repository / name).mkdir(parents=True)
    (repository / "README.md").write_text("models")
    (repository / "zz_broken/1/model.onnx").write_bytes(b"no model")
    (repository / "odd/config.pbtxt").write_text("bogus: 1")
    put(repository, 7, name="zzz")
    put(repository, 1, name="halfway")
    put(repository, 1, name="piped")
    os.mkfifo(repository / "piped/config.pbtxt")
    with running_site(folder, f"--poll-seconds={POLL_SECONDS}", "--trial-seconds=20") as site:
        yield site


def lines(site: Site, *words: str) -> list[str]:
    return [line for line in site.server.log_text().splitlines() if all(word in line for word in words)]


def reloaded(answer: Answer) -> dict[str, dict[str, Any]]:
    assert answer.status == 200, answer
    return {each["model"]: each for each in answer.json["results"]}


def test_the_others_are_served_and_recorded(site: Site) -> None:
    for name, factor in ((NAME, 1.0), ("zzz", 7.0)):
        assert site.predict(name)[1] == factor
        record = get(site.port, f"/v1/models/{name}").json
        assert record["versions"][0]["sha256"]
    names = {each.id for each in site.admin.models("List").models}
    assert {NAME, "zzz", "zz_broken", "odd"} <= names
    assert not {"lost+found", "scripts", ".cache", "README.md"} & names


def test_what_is_no_model_is_said_once_however_often_it_is_seen(site: Site) -> None:
    for number in range(1, 4):
        put(site.repository, number, name="busy")
        time.sleep(2 * POLL_SECONDS)
    reloaded(post(site.port, "/admin/reload", {}))
    assert len(lines(site, '"lost+found"')) == 1
    assert len(lines(site, '"scripts"', "has no version folder: expected scripts/1/model.onnx")) == 1
    assert not lines(site, ".cache")
    assert not lines(site, "README")
    assert not lines(site, "cannot take up the repository")


def test_a_version_folder_without_a_file_takes_no_older_versions_place(site: Site) -> None:
    assert site.predict("halfway") == ("1", 1.0)
    assert site.admin.states("halfway") == {"1": "READY", "2": "UNAVAILABLE"}
    (line,) = lines(site, "model unavailable", '"halfway"')
    assert "version 2 has no file halfway/2/model.onnx" in line


def test_a_reload_does_what_it_can_and_lists_each(site: Site) -> None:
    put(site.repository, 2, name="zzz")
    put(site.repository, 3, name="fresh")
    results = reloaded(post(site.port, "/admin/reload", {}))
    assert {name: results[name]["outcome"] for name in results if name != "busy"} == {
        NAME: "done",
        "fresh": "done",
        "halfway": "failed",
        "lost+found": "skipped",
        "odd": "failed",
        "piped": "failed",
        "scripts": "skipped",
        "zz_broken": "failed",
        "zzz": "done",
    }
    assert results["zz_broken"]["version"] == "1"
    assert "not an ONNX model" in results["zz_broken"]["reason"]
    assert 'odd/config.pbtxt:1:1: field "bogus"' in results["odd"]["reason"]
    assert results["lost+found"]["reason"].startswith("not a model's name; expected 1 to 128 letters")
    assert site.predict("fresh") == ("3", 3.0)
    by_grpc = site.admin.reload()
    assert {each.model: each.outcome for each in by_grpc.results}.items() >= {"fresh": "done", "odd": "failed"}.items()
    assert {each.model for each in by_grpc.models} >= {NAME, "fresh", "odd", "zz_broken", "zzz"}


def test_a_reload_of_one_model_fails_with_its_reason(site: Site) -> None:
    for name, code, reason in (
        ("zz_broken", "INVALID_ARGUMENT", "not an ONNX model"),
        ("odd", "FAILED_PRECONDITION", 'field "bogus" of ModelConfig is not supported'),
        ("scripts", "FAILED_PRECONDITION", "the folder scripts of the repository is no model: has no version folder"),
        ("nobody", "NOT_FOUND", "unknown model"),
    ):
        with refused(code) as said:
            site.admin.reload(name)
        assert reason in said[0]
    assert_error(post(site.port, "/admin/reload", {"model": "nobody"}), 404)
    one = post(site.port, "/admin/reload", {"model": NAME})
    assert one.json["results"] == [{"model": NAME, "version": "", "outcome": "done", "reason": ""}]


def test_versions_with_a_v_and_a_file_of_another_name(site: Site) -> None:
    folder = site.repository / "sentinel"
    for number in (1, 2):
        (folder / f"v{number}").mkdir(parents=True)
        (folder / f"v{number}/net.onnx").write_bytes(times(number))
    assert reloaded(post(site.port, "/admin/reload", {}))["sentinel"]["outcome"] == "done"
    assert site.predict("sentinel") == ("2", 2.0)
    assert get(site.port, "/models/sentinel").json["path"] == "sentinel/v2/net.onnx"
    paths = {each["id"]: each["path"] for each in get(site.port, "/models").json["models"]}
    assert paths["sentinel"] == "sentinel/v2/net.onnx"
    assert site.by_rest(times(3), id="sentinel").status == 201
    assert site.by_rest(times(3), id="sentinel", version="1").status == 409
    assert site.predict("sentinel", "3") == ("3", 3.0)
    assert call(site.port, "DELETE", "/v1/models/sentinel/versions/v1").status == 200
    assert sorted(path.name for path in folder.iterdir()) == ["3", "v2"]


def test_polling_goes_on_beside_what_is_broken(site: Site, tmp_path: pathlib.Path) -> None:
    shutil.copytree(site.repository / "zz_broken", site.repository / "a_broken")
    put(site.repository, 4, name="late")
    wait_for(lambda: site.admin.states("late") == {"4": "READY"})
    wait_for(lambda: site.admin.states("a_broken") == {"1": "UNAVAILABLE"})
    time.sleep(3 * POLL_SECONDS)
    assert len(lines(site, "model version cannot be loaded", '"a_broken"')) == 1
    shutil.rmtree(site.repository / "a_broken")
    wait_for(lambda: "a_broken" not in {each.id for each in site.admin.models("List").models})


def test_what_breaks_while_it_serves_is_said_once(site: Site) -> None:
    config = site.repository / "zzz/config.pbtxt"
    config.write_text("bogus: 1")
    wait_for(lambda: lines(site, "it serves on as it was", '"zzz"'))
    for number in (1, 2):
        put(site.repository, 1, name=f"another{number}")
        wait_for(lambda number=number: site.admin.states(f"another{number}") == {"1": "READY"})
    assert len(lines(site, "it serves on as it was", '"zzz"')) == 1
    config.unlink()
    (site.repository / "zzz2").mkdir()
    (site.repository / "zzz2/config.pbtxt").write_text("bogus: 1")
    wait_for(lambda: "zzz2" in {each.id for each in site.admin.models("List").models})
    assert len(lines(site, "model unavailable", '"zzz2"')) == 1
