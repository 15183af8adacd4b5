"""A shadow's candidate that takes its worker down is not asked again."""

import json
import pathlib
import shutil

import numpy as np

from tests.chaos.census import clean_server
from tests.chaos.models import INT64_MIN, build_repository
from tests.harness import copy_models
from tests.integration.client import raw_request
from tests.lifecycle import Admin, wait_for

NAME = "counts_i64"
# The candidate divides by the last one: SIGFPE.
DEADLY = np.array([[INT64_MIN, 0, 0, -1]])


def test_a_shadow_that_kills_its_worker_is_ended(tmp_path: pathlib.Path) -> None:
    repository = copy_models(tmp_path / "models", NAME)
    shutil.copytree(build_repository(tmp_path / "built") / "divide" / "1", repository / NAME / "2")
    options = ("--workers=1", "--model-control=none")
    with clean_server(tmp_path, repository, *options) as server, Admin(server.address) as admin:
        admin.models("Activate", id=NAME, version="1")
        admin.traffic("Shadow", model=NAME, candidate_version="2", percent=100)
        answer = admin.client.infer(raw_request(NAME, {"counts": DEADLY}))
        assert answer.model_version == "1"
        status = wait_for(lambda: _without_shadow(admin))
        assert "shadow ended: worker 0 died while version 2 ran a copy" in status.last_outcome
        [ended] = admin.models("History", id=NAME, limit=1).entries
        assert (ended.action, ended.actor, json.loads(ended.detail)["percent"]) == ("shadow", "server", 0)
        # The same once more kills nobody.
        wait_for(lambda: admin.client.infer(raw_request(NAME, {"counts": DEADLY})))
        assert server.metric("nexus_worker_restarts_total") == 1


def _without_shadow(admin: Admin) -> object:
    status = admin.traffic("Status", model=NAME)
    return None if status.shadow.version else status
