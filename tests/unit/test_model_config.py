"""config.pbtxt: what is read, and what is refused by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_grpc.config_parameters import SessionOptions
from nexus_grpc.ipc.errors import Code, ModelNotServable
from nexus_grpc.model_config import ModelPolicy, check_config, parse_config, policy_of
from nexus_grpc.pb.inference.model_config_pb2 import ModelConfig

FULL = """
name: "iris"
platform: "onnxruntime_onnx"
backend: "onnxruntime"
max_batch_size: 32
input [ { name: "X" data_type: TYPE_FP32 dims: [ 4 ] } ]
output [
  { name: "label" data_type: TYPE_INT64 dims: [ 1 ] label_filename: "labels.txt" },
  { name: "probabilities" data_type: TYPE_FP32 dims: [ -1 ] }
]
version_policy: { specific { versions: [ 1, 3 ] } }
instance_group [ { kind: KIND_CPU count: 2 } ]
dynamic_batching {
  preferred_batch_size: [ 16, 8 ]
  max_queue_delay_microseconds: 500
  default_queue_policy {
    default_timeout_microseconds: 1000000
    allow_timeout_override: true
    max_queue_size: 64
  }
}
parameters { key: "execution_providers" value: { string_value: "CPUExecutionProvider, DnnlExecutionProvider" } }
parameters { key: "intra_op_thread_count" value: { string_value: "2" } }
parameters { key: "inter_op_thread_count" value: { string_value: " 1 " } }
parameters { key: "graph_optimization_level" value: { string_value: "extended" } }
parameters { key: "isolation" value: { string_value: "dedicated" } }
parameters { key: "max_in_flight" value: { string_value: "64" } }
parameters { key: "fallback_version" value: { string_value: "3" } }
model_warmup [ { name: "zeros" batch_size: 8 inputs { key: "X" value: {
  data_type: TYPE_FP32 dims: [ 4 ] zero_data: true } } } ]
"""


def parse(text: str) -> ModelConfig:
    return parse_config(text, path="iris/config.pbtxt")


def complaint(text: str) -> str:
    """What parsing, checking and reading out say about a configuration of the model `iris`."""
    with pytest.raises(ModelNotServable) as caught:
        check_config(parse(text), "iris")
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert caught.value.reason == "BAD_MODEL_CONFIG"
    return caught.value.message


def test_a_full_configuration() -> None:
    config = parse(FULL)
    check_config(config, "iris")
    assert policy_of(config) == ModelPolicy(
        max_batch_size=32,
        batching=True,
        instances=2,
        isolation="dedicated",
        max_in_flight=64,
        fallback_version=3,
        max_queue_delay_ns=500_000,
        preferred_batch_sizes=(8, 16),
        max_queue_size=64,
        default_timeout_ns=1_000_000_000,
        allow_timeout_override=True,
        session=SessionOptions(
            execution_providers=("CPUExecutionProvider", "DnnlExecutionProvider"),
            intra_op_thread_count=2,
            inter_op_thread_count=1,
            graph_optimization_level="extended",
        ),
    )


def test_an_empty_configuration_is_the_default_policy() -> None:
    config = parse("")
    check_config(config, "iris")
    assert policy_of(config) == ModelPolicy()


def test_no_batch_size_is_not_a_batch_size_of_zero() -> None:
    assert policy_of(parse("max_batch_size: 0")).max_batch_size == 0
    assert policy_of(parse("name: 'iris'")).max_batch_size is None


def test_a_group_without_a_count_is_one_instance() -> None:
    assert policy_of(parse("instance_group [ { kind: KIND_CPU } ]")).instances == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n  ensemble_scheduling { }", 'iris/config.pbtxt:2:3: field "ensemble_scheduling" of ModelConfig is not'),
        ("max_batch_sise: 3", 'field "max_batch_sise" of ModelConfig is not supported; did you mean "max_batch_size"?'),
        (
            "input [ { nam: 'X' } ]",
            'config.pbtxt:1:11: field "nam" of ModelInput is not supported; did you mean "name"?',
        ),
        ("max_batch_size: 99999999999", "config.pbtxt:1:17: malformed: 'max_batch_size: 99999999999'"),
        ("max_batch_size: 'x'", "config.pbtxt:1:17: malformed"),
        ("name: 3", "config.pbtxt:1:7: malformed: 'name: 3'"),
        ("name: '\\xff'", "config.pbtxt:1:"),
        ("name: '\ud800'", "config.pbtxt:1:7: malformed"),
        ("name: 'a' name: 'b'", 'config.pbtxt:1:17: malformed: Message type "inference.ModelConfig" should not'),
        ("input [ { data_type: TYPE_FP8 } ]", "has no value named TYPE_FP8"),
        ("dynamic_batching {", "config.pbtxt:1:"),
        ("[a.b]: 3", "config.pbtxt:1:"),
    ],
)
def test_what_is_no_configuration(text: str, message: str) -> None:
    found = complaint(text)
    assert message in found
    found.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name: "wine"', 'name: is "wine", but the folder is "iris"'),
        ('platform: "tensorflow_savedmodel"', 'platform: "tensorflow_savedmodel" is not supported'),
        ('backend: "python"', 'backend: "python" is not supported'),
        ("max_batch_size: -1", "max_batch_size: is -1"),
        ('default_model_filename: "../x.onnx"', "default_model_filename: must be a plain file name"),
        ('default_model_filename: ".."', "default_model_filename: must be a plain file name"),
        ("response_cache { enable: true }", "response_cache: is not supported yet: it comes with caching"),
        ("instance_group [ { kind: KIND_GPU count: 1 } ]", "instance_group.kind: KIND_GPU is not supported"),
        ("instance_group [ { count: -1 } ]", "instance_group.count: is -1"),
        ("version_policy { latest { } }", "version_policy.latest.num_versions: expected 1 or more"),
        ("version_policy { specific { } }", "version_policy.specific.versions: expected one or more"),
        ("version_policy { specific { versions: 0 } }", "version_policy.specific.versions: expected one or more"),
        ("input { data_type: TYPE_FP32 }", "input: one has no name"),
        ("input { name: 'X' dims: 1 }", 'input: "X" has no data_type'),
        ("output { name: 'Y' data_type: TYPE_FP32 dims: [ 0 ] }", 'output: "Y" has dims [0]'),
        ("input { name: 'X' data_type: 1 } input { name: 'X' data_type: 1 }", 'input: "X" is declared twice'),
        ("output { name: 'Y' data_type: 1 label_filename: 'a/b' }", "label_filename: of output"),
        ("max_batch_size: 4 dynamic_batching { preferred_batch_size: 8 }", "expected 1 to max_batch_size (4)"),
        ("dynamic_batching { preferred_batch_size: 0 }", "dynamic_batching.preferred_batch_size: is [0]"),
        ("dynamic_batching { max_queue_delay_microseconds: 18446744073709551615 }", "expected at most 60000000"),
        (
            "dynamic_batching { default_queue_policy { timeout_action: DELAY } }",
            "default_queue_policy.timeout_action: DELAY is not supported",
        ),
        (
            "dynamic_batching { default_queue_policy { default_timeout_microseconds: 999999999999 } }",
            "default_queue_policy.default_timeout_microseconds: expected at most",
        ),
        ("model_warmup { }", "model_warmup.name: expected a name"),
        ("model_warmup { name: 'w' }", 'model_warmup "w": has no inputs'),
        (
            "max_batch_size: 0 model_warmup { name: 'w' batch_size: 2 inputs { key: 'X' value { } } }",
            "batch_size 2; expected at most 1",
        ),
        ("model_warmup { name: 'w' inputs { key: 'X' value { zero_data: true } } }", 'input "X" has no data_type'),
        ("model_warmup { name: 'w' inputs { key: 'X' value { data_type: 11 dims: -1 } } }", "expected definite sizes"),
        ("model_warmup { name: 'w' inputs { key: 'X' value { data_type: 11 } } }", "zero_data, random_data or"),
    ],
)
def test_what_is_not_honoured(text: str, message: str) -> None:
    assert message in complaint(text)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("intra_op_threads", "2", '"intra_op_threads" is not supported; did you mean "intra_op_thread_count"?'),
        ("execution_mode", "2", 'parameters.execution_mode: is "2"; expected 0 (sequential) or 1 (parallel)'),
        ("enable_mem_arena", "yes", 'parameters.enable_mem_arena: is "yes"; expected 0 or 1'),
        ("memory.enable_memory_arena_shrinkage", "all", "expected cpu:0"),
        ("intra_op_thread_count", "-1", 'parameters.intra_op_thread_count: is "-1"'),
        ("intra_op_thread_count", "4096", "expected a number from 0 (automatic) to 1024"),
        ("inter_op_thread_count", "two", 'parameters.inter_op_thread_count: is "two"'),
        ("inter_op_thread_count", "", 'parameters.inter_op_thread_count: is ""'),
        ("graph_optimization_level", "99", "expected one of disable, basic, extended, all"),
        ("isolation", "alone", "expected one of shared, dedicated"),
        ("max_in_flight", "0", 'parameters.max_in_flight: is "0"; expected a number from 1 to 1048576'),
        ("max_in_flight", "many", 'parameters.max_in_flight: is "many"'),
        ("fallback_version", "v1", 'parameters.fallback_version: is "v1"; expected a number from 1 to'),
        ("fallback_version", "9223372036854775808", "expected a number from 1 to 9223372036854775807"),
        ("execution_providers", "CPU", "parameters.execution_providers"),
        ("execution_providers", "", "parameters.execution_providers"),
    ],
)
def test_parameters(name: str, value: str, message: str) -> None:
    text = f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}'
    assert message in complaint(text)
    with pytest.raises(ModelNotServable):
        policy_of(parse(text))


@given(st.text(max_size=200) | st.lists(st.sampled_from(FULL.split()), max_size=40).map(" ".join))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        config = parse(text)
        check_config(config, "iris")
        policy_of(config)
    except ModelNotServable as error:
        error.message.encode("utf-8")


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ModelNotServable):
        parse("input { " * 20_000)
