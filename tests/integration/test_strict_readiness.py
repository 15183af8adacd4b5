"""--strict-readiness: not ready while a model that was asked for at the start is down."""

import pathlib

from nexus_grpc.pb.inference import grpc_service_pb2 as oip
from tests.harness import running_server, wait_rest
from tests.integration.rest import get
from tests.lifecycle import Admin, put, wait_for

PATHS = ("/ready", "/v2/health/ready")


def is_ready(admin: Admin) -> bool:
    return bool(admin.client.cold("ServerReady", oip.ServerReadyRequest()).ready)


def test_a_model_that_is_down(tmp_path: pathlib.Path) -> None:
    repository = tmp_path / "models"
    put(repository, 1)
    put(repository, 1, b"no model", name="broken")
    options = ("--fronts=1", "--workers=1", "--model-control=none")
    with (
        running_server(
            tmp_path, *options, "--strict-readiness", repository=repository, rest=True, wait=False
        ) as server,
        Admin(server.address) as admin,
    ):
        wait_rest(server.rest_port, server.process, server.log)
        for path in PATHS:
            answer = get(server.rest_port, path)
            assert answer.status == 503
            assert answer.message.startswith("model 'broken' is down (--strict-readiness): ")
        assert not is_ready(admin)
        assert admin.ask().by_values == "1", "it is served all the same"
        put(repository, 1, name="broken")
        admin.models("Load", id="broken")
        assert [get(server.rest_port, path).status for path in PATHS] == [200, 200]
        assert is_ready(admin)
        # Somebody wants it so.
        admin.models("Unload", id="broken")
        assert is_ready(admin)


def test_without_it_and_with_a_model_that_is_not_there(tmp_path: pathlib.Path) -> None:
    repository = tmp_path / "models"
    put(repository, 1)
    options = ("--fronts=1", "--workers=1", "--model-control=explicit", "--load-model=times,nobody")
    with running_server(tmp_path, *options, repository=repository) as server, Admin(server.address) as admin:
        assert is_ready(admin)
    strict = (*options, "--strict-readiness")
    with (
        running_server(tmp_path, *strict, repository=repository, wait=False) as server,
        Admin(server.address) as admin,
    ):
        wait_for(lambda: admin.ask().by_values == "1")
        assert not is_ready(admin)
