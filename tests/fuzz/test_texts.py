"""Whatever a client names and whatever a config.pbtxt says: our errors only."""

import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from nexus_grpc.front.routes import RouteTable, read_name_and_version
from nexus_grpc.ipc.errors import InvalidInput, ModelNotServable, NexusError
from nexus_grpc.ipc.rich_errors import status_bytes
from nexus_grpc.model_config import check_config, parse_config, policy_of
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from tests.effort import examples
from tests.property.messages import mutations
from tests.unit.support import entry

TABLE = RouteTable()
TABLE.replace([entry("m", "1", 1), entry("m", "2", 2, "UNAVAILABLE", "broken"), entry("n", "1", 3, "LOADING")])


def hold(message: bytes) -> None:
    refusal: NexusError | None = None
    try:
        assert TABLE.find(message).name == "m"
    except NexusError as error:
        refusal = error
    if refusal is not None:
        assert status_bytes(refusal)
        assert refusal.message.encode()
    with contextlib.suppress(InvalidInput):
        name, version = read_name_and_version(message)
        assert len(name) + len(version) <= len(message)


@given(st.binary(max_size=100))
@settings(deadline=None, max_examples=examples(300))
def test_routes_of_random_bytes(message: bytes) -> None:
    hold(message)
    hold(b"\x0a\x01m" + message)
    hold(b"\x0a\x01m\x12" + message)


@given(st.data(), st.text(max_size=5), st.text(max_size=5))
@settings(deadline=None, max_examples=examples(300))
def test_routes_of_mutated_requests(data: st.DataObject, name: str, version: str) -> None:
    message = pb.ModelInferRequest(model_name=name, model_version=version, id="id").SerializeToString()
    hold(data.draw(mutations(message)))


FIELDS = ["name", "max_batch_size", "input", "dims", "data_type", "model_warmup", "parameters", "key", "value", "kind"]
BLOCKS = [
    "dynamic_batching",
    "instance_group",
    "version_policy",
    "latest",
    "[type.googleapis.com/x]",
    "{",
    "}",
    "<",
    ">",
]
VALUES = [
    "TYPE_FP32",
    "KIND_CPU",
    "-1",
    "1e999",
    "0x7fffffffffffffff",
    "[",
    "]",
    ":",
    ",",
    ";",
    '"',
    "'",
    "\n",
    "\\",
    "\0",
]
WORDS = st.sampled_from([*FIELDS, *BLOCKS, *VALUES, "#"])


def configure(text: str) -> None:
    try:
        config = parse_config(text, path="m/config.pbtxt")
        check_config(config, "m")
        policy_of(config)
    except ModelNotServable as error:
        error.message.encode()


@given(st.text(max_size=60) | st.lists(WORDS, max_size=25).map(" ".join))
@settings(deadline=None, max_examples=examples(400))
def test_configurations(text: str) -> None:
    configure(text)


def test_configurations_nested_without_end() -> None:
    configure("input { " * 100_000)
    configure("[" * 100_000)
