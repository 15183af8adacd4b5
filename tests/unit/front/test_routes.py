"""From a message's first bytes to its route."""

import traceback
from typing import Any

import pytest

from nexus_grpc.front.protection import NO_CIRCUIT
from nexus_grpc.front.routes import BALANCES, LeastLatencyRoute, Route, RouteTable, read_name_and_version
from nexus_grpc.ipc.errors import InvalidInput, ModelUnavailable, NexusError, UnknownModel
from nexus_grpc.ipc.wire import length_prefix
from nexus_grpc.limits.circuit import Circuit
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.traffic.assignment import encode, initial
from tests.unit.support import Pair, RecordedFlight, entry


@pytest.fixture
def table() -> RouteTable:
    made = RouteTable()
    made.replace(
        [
            entry("iris", "2", slot=1),
            entry("iris", "10", slot=2),
            entry("iris", "11", slot=3, state="UNAVAILABLE", reason="it is broken"),
            entry("broken", "1", slot=4, state="UNAVAILABLE", reason="no such operator"),
            entry("later", "1", slot=5, state="LOADING"),
            entry("l" * 200, "1", slot=6),
        ]
    )
    return made


def message(name: str, version: str = "", **fields: str) -> bytes:
    return pb.ModelInferRequest(model_name=name, model_version=version, **fields).SerializeToString()


@pytest.mark.parametrize(("version", "slot"), [("", 2), ("2", 1), ("10", 2)])
@pytest.mark.parametrize("request_id", ["", "an-id"])
def test_a_version_or_the_newest_ready_one(table: RouteTable, version: str, slot: int, request_id: str) -> None:
    assert table.find(message("iris", version, id=request_id)).slot == slot


def test_the_newest_is_by_number_and_not_by_order(table: RouteTable) -> None:
    table.replace([entry("m", "10", slot=1), entry("m", "9", slot=2)])
    assert table.find(message("m")).version == "10"


def test_names_longer_than_one_length_byte(table: RouteTable) -> None:
    assert table.find(message("l" * 200)).slot == 6


def test_fields_in_another_order(table: RouteTable) -> None:
    head = pb.ModelInferRequest(id="before").SerializeToString()
    version = pb.ModelInferRequest(model_version="2").SerializeToString()
    assert table.find(head + version + message("iris")).slot == 1


def test_a_name_twice_the_last_one_wins_where_the_whole_message_is_read(table: RouteTable) -> None:
    assert read_name_and_version(message("one", "1") + message("two", "2")) == (b"two", b"2")
    assert table.find(message("unknown") + message("iris", "2")).slot == 1


@pytest.mark.parametrize("wire_type", [0, 1, 2, 5])
def test_unknown_fields_are_passed_over(wire_type: int) -> None:
    content = {0: b"\x80\x80\x01", 1: bytes(8), 2: b"\x03\x0a\x01x", 5: bytes(4)}[wire_type]
    assert read_name_and_version(bytes([15 << 3 | wire_type]) + content + message("m", "3")) == (b"m", b"3")


@pytest.mark.parametrize(
    ("asked", "kind", "text"),
    [
        (message("nobody"), UnknownModel, "Request for unknown model: 'nobody' is not found"),
        (message("iris", "7"), UnknownModel, "version 7 is not found; there is: 10, 11, 2"),
        (message("iris", "11"), ModelUnavailable, "model 'iris' is not ready: it is broken"),
        (message("broken"), ModelUnavailable, "model 'broken' is not ready: no such operator"),
        (message("broken", "1"), ModelUnavailable, "no such operator"),
        (message("later"), ModelUnavailable, "not ready: loading"),
        (message(""), InvalidInput, "names no model"),
        (b"", InvalidInput, "names no model"),
        (b"\x0a", InvalidInput, "not a valid protobuf message"),
        (b"\x0a\x05ab", InvalidInput, "not a valid protobuf message"),
        (b"\x0b", InvalidInput, "not a valid protobuf message"),
        (b"\x80" * 11, InvalidInput, "not a valid protobuf message"),
        (b"\x0a\x04\xff\xfe\xfd\xfc", UnknownModel, "unknown model"),
        (message("iris") + b"\x12\x7f1", InvalidInput, "not a valid protobuf message"),
    ],
)
def test_what_has_no_route(table: RouteTable, asked: bytes, kind: type[NexusError], text: str) -> None:
    with pytest.raises(kind, match=text):
        table.find(asked)


def test_refusing_garbage_keeps_nothing_of_it() -> None:
    depths = []
    for _ in range(3):
        with pytest.raises(InvalidInput) as caught:
            read_name_and_version(b"\x0a\x05ab")
        depths.append(len(traceback.extract_tb(caught.value.__traceback__)))
    assert len(set(depths)) == 1


def test_a_new_table_keeps_the_links_of_slots_that_stay(table: RouteTable) -> None:
    link = Pair().front
    table.routes[1].links = (link,)
    table.replace([entry("iris", "2", slot=1), entry("iris", "3", slot=9)])
    assert table.routes[1].links == (link,)
    assert table.routes[9].links == ()
    with pytest.raises(UnknownModel):
        table.find(message("broken"))


def test_a_route_picks_the_less_busy_of_two_in_turn() -> None:
    links = [Pair(worker=index).front for index in range(3)]
    route = Route(1, "m", "1", frozenset({0, 1, 2}), Circuit(NO_CIRCUIT))
    assert route.pick() is None
    route.links = (links[0],)
    assert route.pick() is links[0]
    route.links = tuple(links)
    assert {id(route.pick()) for _ in range(3)} == {id(link) for link in links}
    for link in links[:2]:
        link.flights[1] = RecordedFlight()
    picked = [route.pick() for _ in range(6)]
    assert picked.count(links[2]) == 4


def three_links(balance: str) -> tuple[Route, list[Any]]:
    links = [Pair(worker=index).front for index in range(3)]
    route = BALANCES[balance](1, "m", "1", frozenset({0, 1, 2}), Circuit(NO_CIRCUIT))
    route.links = tuple(links)
    return route, links


def test_round_robin_takes_the_workers_in_turn_however_busy() -> None:
    route, links = three_links("round_robin")
    links[0].flights[1] = RecordedFlight()
    picked = [links.index(route.pick()) for _ in range(6)]
    assert sorted(picked[:3]) == [0, 1, 2]
    assert picked[:3] == picked[3:]
    route.links = ()
    assert route.pick() is None


def test_least_latency_takes_who_would_answer_first() -> None:
    route, links = three_links("least_latency")
    assert route.measures
    for link, latency_ms in zip(links, (1, 4, 9), strict=True):
        # Each is tried once before any is tried again.
        assert route.pick() is link
        route.observe(link, latency_ms * 1_000_000)
    assert route.pick() is links[0]
    # With four in flight there (1 ms × 5), the one of 4 ms is the quicker.
    for number in range(4):
        links[0].flights[number] = RecordedFlight()
    assert route.pick() is links[1]
    # It has become slow; an average follows.
    for _ in range(30):
        route.observe(links[1], 20_000_000)
    assert route.pick() is links[0]
    route.links = ()
    assert route.pick() is None


def test_a_new_table_keeps_measured_latencies() -> None:
    table = RouteTable()
    for _ in range(2):
        table.replace([entry("m", "1", slot=1)], {"m": {"serving": 1, "balance": "least_latency"}})
        route = table.routes[1]
        assert isinstance(route, LeastLatencyRoute)
        route.latencies_ns.setdefault(0, 5.0)
    assert route.latencies_ns == {0: 5.0}
    assert table.measures


def test_versions_by_other_names() -> None:
    table = RouteTable()
    table.replace([{**entry("m", "3", slot=1), "version_name": "1.0.0"}, entry("m", "4", slot=2)])
    assert [table.find(message("m", name)).slot for name in ("3", "v3", "1.0.0", "v4", "")] == [1, 1, 1, 2, 2]


def test_the_version_that_serves_need_not_be_the_newest() -> None:
    table = RouteTable()
    table.replace([entry("m", "1", slot=1), entry("m", "2", slot=2)], {"m": {"serving": 1}})
    assert table.find(message("m")).slot == 1
    table.replace([entry("m", "1", slot=1), entry("m", "2", slot=2)], {"m": {"serving": 0}})
    with pytest.raises(ModelUnavailable, match="no version of it answers requests that name none"):
        table.find(message("m"))
    assert table.find(message("m", "2")).slot == 2


def test_what_begins_anew_when_a_slot_gets_another_owner() -> None:
    table = RouteTable()
    assert table.replace([{**entry("m", "1", slot=1), "incarnation": 1}]) == [1]
    assert table.replace([{**entry("m", "1", slot=1), "incarnation": 1}]) == []
    link = Pair().front
    table.routes[1].links = (link,)
    assert table.replace([{**entry("m", "2", slot=1), "incarnation": 2}]) == [1]
    assert table.routes[1].links == ()


def test_an_experiments_arms() -> None:
    table = RouteTable()
    arms = [{**entry("m", v, slot=s), "variant": a} for v, s, a in (("1", 11, "A"), ("2", 12, "B"))]
    split = {"serving": 1, "arms": [11, 12], "assignment": encode(initial([0, 10_000])), "salt": "s", "sticky": None}
    table.replace([entry("m", "1", slot=1), entry("m", "2", slot=2), *arms], {"m": split})
    flight = RecordedFlight(message("m"))
    assert table.route_of(flight).slot == 12
    # By number: outside of the experiment.
    assert table.route_of(RecordedFlight(message("m", "1"))).slot == 1
    # An arm that is not there yet: what serves answers for it.
    table.replace([entry("m", "1", slot=1), entry("m", "2", slot=2)], {"m": split})
    assert table.route_of(flight).slot == 1


def rest(body: bytes, version: bytes = b"") -> bytes:
    """As front/http_calls.py writes a body that names no model."""
    return (length_prefix(2, len(version)) + version if version else b"") + length_prefix(15, len(body)) + body


def test_rest_may_name_no_model_where_one_is_served(table: RouteTable) -> None:
    with pytest.raises(InvalidInput, match='"model_id" is missing'):
        table.find(rest(b"{}"))
    table.replace([entry("iris", "1", slot=1), entry("iris", "2", slot=2), entry("x", "1", slot=3, state="LOADING")])
    assert table.find(rest(b"{}")).slot == 2
    assert table.find(rest(b"{}", b"1")).slot == 1
    with pytest.raises(InvalidInput, match="names no model"):
        table.find(pb.ModelInferRequest(id="x").SerializeToString())
    table.replace([entry("x", "1", slot=3, state="UNAVAILABLE", reason="it is broken")])
    with pytest.raises(ModelUnavailable, match="it is broken"):
        table.find(rest(b"{}"))
    table.replace([])
    with pytest.raises(InvalidInput, match='"model_id" is missing'):
        table.find(rest(b"{}"))
