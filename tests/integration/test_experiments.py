"""Traffic over several versions: shares, sticky keys, shadows, and changes that wait for nothing."""

import math
import pathlib
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from loadtest import h2load
from nexus_grpc.pb.nexus.v1 import traffic_pb2
from tests.harness import Server, require_tool, running_server
from tests.integration import bad_models
from tests.lifecycle import NAME, Admin, put, refused, request_for, times, wait_for

REQUESTS = 100_000
KEYS = [f"customer-{number}" for number in range(3000)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("experiments") / "models"
    for version in (1, 2, 3):
        put(folder, version)
    return folder


@pytest.fixture(scope="module")
def running(repository: pathlib.Path) -> Iterator[Server]:
    options = ("--fronts=2", "--workers=2", "--model-control=none", "--trial-seconds=5")
    with running_server(repository.parent, *options, repository=repository) as server:
        yield server


@pytest.fixture
def admin(running: Server) -> Iterator[Admin]:
    """Version 1 answers, with nothing beside it."""
    with Admin(running.address) as admin:
        if admin.traffic("Status", model=NAME).active:
            admin.traffic("Abort", model=NAME)
        admin.traffic("Shadow", model=NAME, percent=0)
        admin.models("Activate", id=NAME, version="1")
        yield admin


def variants_of(admin: Admin, keys: list[str]) -> dict[str, str]:
    """Variant by key; keys go by the header x-customer."""
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda key: admin.ask(metadata=(("x-customer", key),)), keys)
        return {key: answer.variant for key, answer in zip(keys, answers, strict=True)}


def counted(admin: Admin, requests: int) -> Any:
    """The status, once so many requests are counted."""
    status = admin.traffic("Status", model=NAME)
    return status if sum(each.requests for each in status.variants) >= requests else None


@pytest.mark.parametrize(
    "shares",
    [pytest.param((50.0,), marks=pytest.mark.long), (5.0,), pytest.param((20.0, 0.5), marks=pytest.mark.long)],
    ids=str,
)
def test_shares_are_exact_over_many_requests(
    admin: Admin, running: Server, tmp_path: pathlib.Path, shares: tuple[float, ...]
) -> None:
    """Within three standard deviations of a draw with these probabilities."""
    require_tool("h2load")
    more = [traffic_pb2.VariantShare(version="3", percent=share) for share in shares[1:]]
    admin.traffic("Setup", model=NAME, candidate_version="2", percent=shares[0], more=more)
    body = tmp_path / "request"
    message = request_for().SerializeToString()
    body.write_bytes(struct.pack(">xI", len(message)) + message)
    url = f"http://{running.address}/inference.GRPCInferenceService/ModelInfer"
    h2load.run(url, body, 32, REQUESTS, None, limit_s=100)
    status = wait_for(lambda: counted(admin, REQUESTS))
    assert [each.errors for each in status.variants] == [0.0] * (1 + len(shares))
    assert sum(each.requests for each in status.variants) == REQUESTS
    for variant, share in zip(status.variants[1:], shares, strict=True):
        p = share / 100
        assert abs(variant.requests - REQUESTS * p) <= 3 * math.sqrt(REQUESTS * p * (1 - p)), variant


def test_sticky_keys_never_flap_and_a_raise_moves_only_new_ones(admin: Admin) -> None:
    sticky = traffic_pb2.StickyKey(header="x-customer")
    admin.traffic("Setup", model=NAME, candidate_version="2", percent=5, sticky=sticky)
    at_five = variants_of(admin, KEYS)
    assert variants_of(admin, KEYS) == at_five
    admin.traffic("Split", model=NAME, percent=25)
    at_25 = variants_of(admin, KEYS)
    moved = {key for key in KEYS if at_25[key] != at_five[key]}
    assert {at_25[key] for key in moved} == {"B"}
    for found, p in ((sum(v == "B" for v in at_five.values()), 0.05), (len(moved), 0.20)):
        assert abs(found - len(KEYS) * p) <= 4 * math.sqrt(len(KEYS) * p * (1 - p))
    # Back down: those who came last go back, and nobody else moves.
    admin.traffic("Split", model=NAME, percent=5)
    back = variants_of(admin, KEYS)
    assert {back[key] for key in KEYS if back[key] != at_25[key]} <= {"A"}
    assert sum(variant == "B" for variant in back.values()) == pytest.approx(len(KEYS) * 0.05, rel=0.5)


def test_sticky_by_a_parameter(admin: Admin) -> None:
    sticky = traffic_pb2.StickyKey(parameter="customer")
    admin.traffic("Setup", model=NAME, candidate_version="2", percent=50, sticky=sticky)
    first = {key: admin.ask(customer=key).variant for key in KEYS[:100]}
    assert set(first.values()) == {"A", "B"}
    assert {key: admin.ask(customer=key).variant for key in KEYS[:100]} == first


def test_the_next_experiment_draws_anew(admin: Admin) -> None:
    """Or the same customers would be the guinea pigs of every experiment."""
    sticky = traffic_pb2.StickyKey(header="x-customer")
    draws = []
    for _ in range(2):
        admin.traffic("Setup", model=NAME, candidate_version="2", percent=50, sticky=sticky)
        draws.append(variants_of(admin, KEYS[:200]))
        admin.traffic("Abort", model=NAME)
    assert draws[0] != draws[1]


def test_a_version_by_name_is_outside_of_the_experiment(admin: Admin) -> None:
    admin.traffic("Setup", model=NAME, candidate_version="2", percent=100)
    assert admin.ask().variant == "B"
    assert (admin.ask("1").version, admin.ask("1").variant) == ("1", "default")
    admin.ask()
    status = wait_for(lambda: counted(admin, 2))
    assert [each.requests for each in status.variants] == [0.0, 2.0]


def test_a_shadow_is_compared_and_never_answers(admin: Admin) -> None:
    admin.traffic("Shadow", model=NAME, candidate_version="2", percent=100)
    for _ in range(20):
        assert admin.ask().by_values == "1"
    shadow = wait_for(lambda: _compared(admin, 20))
    assert (shadow.version, shadow.percent, shadow.errors) == ("2", 100.0, 0.0)
    # Twice the value is another answer.
    assert (shadow.compared, shadow.disagreed, shadow.disagreement_rate) == (20.0, 20.0, 1.0)


def test_a_shadow_that_agrees(admin: Admin, repository: pathlib.Path) -> None:
    put(repository, 7, times(1))
    admin.models("Load", id=NAME, version="7")
    admin.models("Activate", id=NAME, version="1")
    admin.traffic("Shadow", model=NAME, candidate_version="7", percent=100)
    for _ in range(10):
        assert admin.ask().version == "1"
    assert wait_for(lambda: _compared(admin, 10)).disagreed == 0.0


def _compared(admin: Admin, count: int) -> Any:
    shadow = admin.traffic("Status", model=NAME).shadow
    assert shadow.dropped == 0.0
    return shadow if shadow.compared >= count else None


@pytest.mark.parametrize("change", ["rollback", "promote", "abort", "activate"])
def test_changes_of_traffic_wait_for_no_load(admin: Admin, repository: pathlib.Path, change: str) -> None:
    """While another version of the same model takes for ever to load."""
    admin.models("Activate", id=NAME, version="2")
    admin.models("Activate", id=NAME, version="1")
    admin.traffic("Setup", model=NAME, candidate_version="3", percent=50)
    put(repository, 9, bad_models.never_ends(batchable=True).SerializeToString())
    failure: list[grpc.RpcError] = []

    def load() -> None:
        try:
            with Admin(admin.address) as other:
                other.models("Load", id=NAME, version="9")
        except grpc.RpcError as error:
            failure.append(error)

    loading = threading.Thread(target=load)
    loading.start()
    wait_for(lambda: admin.states().get("9") == "LOADING")
    if change == "rollback":
        admin.traffic("Abort", model=NAME)
        assert admin.models("Rollback", id=NAME).version == "2"
    elif change == "activate":
        admin.traffic("Abort", model=NAME)
        assert admin.models("Activate", id=NAME, version="3").version == "3"
    else:
        admin.traffic(change.capitalize(), model=NAME)
    expected = {"rollback": "2", "promote": "3", "abort": "1", "activate": "3"}[change]
    assert {admin.ask().by_values for _ in range(20)} == {expected}
    assert loading.is_alive(), "the load was over before the change: nothing was shown"
    loading.join(60)
    assert [isinstance(each, grpc.Call) and each.code().name for each in failure] == ["FAILED_PRECONDITION"]
    with refused("UNAVAILABLE"):
        admin.ask("9")
