"""Models with capitals in their names, and names that differ by case only: by upload, by record and by folder."""

import concurrent.futures
import os
import pathlib
from collections.abc import Iterator

import grpc
import pytest

from tests.integration.rest import assert_error, get, post
from tests.integration.uploading import REQUEST_ID, Site, form_of, messages, running_site
from tests.lifecycle import NAME, answered, code_of, put, refused, request_for, times, wait_for

BERT = "BertBase"
TAKEN = "the name 'Times' differs from the model 'times' by case only; give it another name, or delete 'times' first"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("names")
    put(folder / "models", 3, name=BERT)
    with running_site(folder, "--poll-seconds=0.3", "--trial-seconds=20") as site:
        yield site


@pytest.mark.parametrize("name", [BERT, "X" * 128])
def test_a_model_with_capitals_is_served_by_every_door(site: Site, name: str) -> None:
    if name != BERT:
        assert site.by_grpc(times(3), id=name, version="3").active
    assert answered(site.admin.client.infer(request_for(name=name))).by_values == "3"
    assert site.predict(name) == ("3", 3.0)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 100]}
    by_v2 = post(site.port, f"/v2/models/{name}/infer", {"inputs": [tensor]})
    assert (by_v2.status, by_v2.json["outputs"][0]["data"]) == (200, [3.0, 300.0])
    assert get(site.port, f"/models/{name}").json["id"] == name
    assert get(site.port, f"/v1/models/{name}").json["versions"][0]["version"] == "3"
    assert get(site.port, f"/v2/models/{name}").json["name"] == name
    assert_error(get(site.port, f"/models/{name.lower()}"), 404)


def test_a_wrong_name_is_told_the_right_one(site: Site) -> None:
    for wrong, right in (("bertbase", BERT), ("Bert-Base", BERT), ("BertBas", BERT), ("tims", NAME)):
        with refused("NOT_FOUND") as said:
            site.admin.client.infer(request_for(name=wrong))
        assert said == [f"Request for unknown model: '{wrong}' is not found; did you mean '{right}'?"]
        for answer in (
            post(site.port, "/predict", {"model_id": wrong, "features": [1, 2]}),
            get(site.port, f"/models/{wrong}"),
            get(site.port, f"/v2/models/{wrong}"),
        ):
            assert f"did you mean '{right}'?" in answer.body.decode()
            assert answer.status == 404
    with refused("NOT_FOUND") as said:
        site.admin.client.infer(request_for(name="nothing-like-it"))
    assert said == ["Request for unknown model: 'nothing-like-it' is not found"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/bertbase/load", {}),
        ("/v1/models/bertbase/unload", {}),
        ("/v1/models/bertbase/activate", {"version": "3"}),
        ("/v1/models/bertbase/rollback", {}),
        ("/admin/reload", {"model": "bertbase"}),
        ("/admin/ab/setup", {"model": "bertbase", "candidate_version": "4", "percent": 5}),
        ("/admin/ab/split", {"model": "bertbase", "percent": 5}),
        ("/v1/models/bertbase", None),
        ("/v1/models/bertbase/history", None),
        ("/admin/ab/status?model=bertbase", None),
    ],
)
def test_what_is_done_to_a_wrong_name_is_told_the_right_one(site: Site, path: str, body: dict[str, str] | None) -> None:
    answer = get(site.port, path) if body is None else post(site.port, path, body)
    assert answer.status == 404
    assert answer.message == f"Request for unknown model: 'bertbase' is not found; did you mean '{BERT}'?"


def test_a_version_that_is_not_there_is_told_those_that_are(site: Site) -> None:
    for verb in ("load", "unload", "activate"):
        answer = post(site.port, f"/v1/models/{BERT}/{verb}", {"version": "9"})
        assert (answer.status, answer.message) == (404, f"model '{BERT}' has no version 9; there is: 3")


def test_an_upload_whose_name_differs_by_case_only_is_refused(site: Site) -> None:
    with site.unchanged():
        by_grpc = site.refused_by_grpc(messages(times(5), id="Times"))
        assert (by_grpc.status, by_grpc.message, by_grpc.reason) == ("ALREADY_EXISTS", TAKEN, "NAME_TAKEN")
        assert by_grpc.request_id == REQUEST_ID
        by_rest = site.refused_by_rest(form_of(times(5), id="Times"))
        assert (by_rest.status, by_rest.message) == (409, TAKEN)
        with refused("ALREADY_EXISTS") as said:
            site.admin.models("Register", id="Times")
        assert said == [TAKEN]


def test_of_two_uploads_at_once_one_is_first(site: Site) -> None:
    def upload(name: str) -> str:
        try:
            return str(site.by_grpc(times(5), id=name).model.id)
        except grpc.RpcError as error:
            return code_of(error)

    names = ["twin", "Twin", "tWin", "TWIN"]
    with concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        ends = list(pool.map(upload, names))
    assert sorted(ends)[:3] == ["ALREADY_EXISTS"] * 3
    assert [each.id for each in site.admin.models("List").models if each.id.lower() == "twin"] == [max(ends)]


def test_a_folder_whose_name_differs_by_case_only_is_skipped(site: Site) -> None:
    for path in (put(site.repository, 7, name="Times"), put(site.repository, 7, name="Late")):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    wait_for(lambda: site.admin.states("Late"))
    with refused("NOT_FOUND"):
        site.admin.models("Info", id="Times")
    with refused("ALREADY_EXISTS") as said:
        site.admin.models("Load", id="Times")
    assert said == [TAKEN]
    assert site.admin.ask().by_values == "1"
    assert site.server.log_text().count("'Times' differs from the model 'times' by case only") == 1
    assert site.admin.models("GetRecord", id=NAME).id == NAME


def test_the_newcomer_stays_the_newcomer_after_a_restart(tmp_path: pathlib.Path) -> None:
    """By the alphabet it would be the first."""
    with running_site(tmp_path) as site:
        assert site.predict(NAME) == ("1", 1.0)
    put(tmp_path / "models", 7, name="Times")
    with running_site(tmp_path) as site:
        assert site.predict(NAME) == ("1", 1.0)
        with refused("NOT_FOUND"):
            site.admin.models("Info", id="Times")
