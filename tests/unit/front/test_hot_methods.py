"""Request ids and deadlines as they come off a call."""

import math
import re
import time

import pytest

from nexus_grpc.front.hot_methods import PATHS, STREAMING, monotonic_deadline_ns, request_id_of
from nexus_grpc.front.request_ids import RequestIds
from nexus_grpc.ipc.record import REQUEST_ID_MAX_BYTES, Method
from nexus_grpc.pb.inference import grpc_service_pb2
from nexus_grpc.pb.nexus.v1 import inference_pb2
from nexus_grpc.rest.http_rules import http_methods
from nexus_grpc.rest.twin import path_of

NOW_NS = 10**15
MADE = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-a[0-9a-f]{3}-[0-9a-f]{12}")


def test_the_paths_are_those_of_the_protos() -> None:
    known = {
        f"/{service.full_name}/{method.name}": method.client_streaming
        for module in (grpc_service_pb2, inference_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    } | {path_of(method.name): False for method in http_methods() if method.has_body}
    assert set(PATHS) == set(Method)
    assert {path: known[path] for path in PATHS.values()} == {PATHS[m]: m in STREAMING for m in Method}


@pytest.mark.parametrize("given", ["a", "A-1_b.c:d/e+f=g@h", "x" * REQUEST_ID_MAX_BYTES])
def test_a_well_formed_request_id_is_kept(given: str) -> None:
    metadata = (("user-agent", "x"), ("x-request-id", given), ("x-request-id", "second"))
    assert request_id_of(metadata, RequestIds(bytes(9))) == given.encode()


@pytest.mark.parametrize("given", ["", " ", "a b", 'a"b', "a\n", "ä", "x" * (REQUEST_ID_MAX_BYTES + 1), b"bytes"])
def test_any_other_is_replaced(given: str | bytes) -> None:
    assert MADE.fullmatch(request_id_of((("x-request-id", given),), RequestIds(bytes(9))).decode())
    assert MADE.fullmatch(request_id_of((), RequestIds(bytes(9))).decode())


@pytest.mark.parametrize(
    "deadline", [None, math.inf, math.nan, 9.2e18, time.time() + 2e8], ids=["none", "inf", "nan", "max", "years"]
)
def test_no_deadline(deadline: float | None) -> None:
    assert monotonic_deadline_ns(deadline, NOW_NS) == 0


def test_a_deadline_becomes_monotonic() -> None:
    before = time.time()
    deadline_ns = monotonic_deadline_ns(before + 1000, NOW_NS)
    assert NOW_NS < deadline_ns <= NOW_NS + 1000 * 10**9


@pytest.mark.parametrize("deadline", [0.0, -1e12])
def test_a_passed_deadline_is_still_one(deadline: float) -> None:
    assert 0 < monotonic_deadline_ns(deadline, NOW_NS) < NOW_NS
