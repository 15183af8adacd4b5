"""The fast way to a route gives what reading the whole message gives."""

from hypothesis import given, settings
from hypothesis import strategies as st

from nexus_grpc.front.routes import Route, RouteTable
from nexus_grpc.ipc.errors import NexusError
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from tests.effort import examples
from tests.property.messages import mutations
from tests.unit.support import entry

NAMES = ["m", "mm", "n" * 127, "n" * 128, "ä", "\n\x01m"]
VERSIONS = ["", "1", "2", "10", "9"]


def table() -> RouteTable:
    made = RouteTable()
    made.replace(
        [
            entry(name, version, slot=1 + len(VERSIONS) * row + column, state="READY" if version != "9" else "LOADING")
            for row, name in enumerate(NAMES)
            for column, version in enumerate(VERSIONS)
            if version
        ]
    )
    return made


TABLE = table()
REQUESTS = st.builds(
    pb.ModelInferRequest,
    model_name=st.sampled_from([*NAMES, "", "other"]),
    model_version=st.sampled_from([*VERSIONS, "7"]),
    id=st.sampled_from(["", "id", "\x12\x011"]),
    raw_input_contents=st.lists(st.binary(max_size=3), max_size=2),
)


def outcome(find: object, message: bytes) -> object:
    """The route, or what was refused and how."""
    try:
        found = find(message)  # type: ignore[operator]
    except NexusError as error:
        return type(error), error.message
    assert isinstance(found, Route)
    return found.slot


@given(REQUESTS)
@settings(deadline=None, max_examples=examples(300))
def test_fast_and_slow_agree_on_what_clients_send(request: pb.ModelInferRequest) -> None:
    message = request.SerializeToString()
    assert outcome(TABLE.find, message) == outcome(TABLE._find_slowly, message)


@given(st.data(), REQUESTS)
@settings(deadline=None, max_examples=examples(300))
def test_a_worker_refuses_what_the_front_routed_by_another_name(
    data: st.DataObject, request: pb.ModelInferRequest
) -> None:
    """Where a message names a model twice or its version late, the front may pick a route that parsing would not; the
    worker checks the parsed name and version against its own, so nobody gets another model's answer."""
    message = data.draw(mutations(request.SerializeToString()))
    found = outcome(TABLE.find, message)
    if not isinstance(found, int):
        return
    route = TABLE.routes[found]
    try:
        parsed = pb.ModelInferRequest.FromString(message)
    except Exception:
        return
    if (parsed.model_name, parsed.model_version) in ((route.name, ""), (route.name, route.version)):
        if parsed.model_version:
            assert outcome(TABLE._find_slowly, message) == found
        else:
            assert found == outcome(TABLE._find_slowly, message) or b"\x12" in message
