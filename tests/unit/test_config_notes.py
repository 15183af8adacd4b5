"""config.pbtxt from real Triton repositories: what is honoured, accepted with a note, or refused by name."""

import pytest

from nexus_grpc.config_notes import notes_of
from nexus_grpc.config_parameters import SessionOptions
from nexus_grpc.ipc.errors import ModelNotServable
from nexus_grpc.model_config import check_config, parse_config, policy_of
from nexus_grpc.pb.inference.model_config_pb2 import ModelConfig


def parse(text: str) -> ModelConfig:
    config = parse_config(text, path="iris/config.pbtxt")
    check_config(config, "iris")
    return config


def parameter(name: str, value: str) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}\n'


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("dynamic_batching { preserve_ordering: true }", "dynamic_batching.preserve_ordering: a stream's answers come"),
        ("optimization { input_pinned_memory { enable: true } }", "optimization.*_pinned_memory: there is no GPU"),
        ("optimization { output_pinned_memory { enable: false } }", "optimization.*_pinned_memory: there is no GPU"),
        ("optimization { gather_kernel_buffer_threshold: 8 }", "optimization.gather_kernel_buffer_threshold: "),
        ("optimization { priority: PRIORITY_MAX }", "optimization.priority: models have no priority"),
        ("optimization { eager_batching: true }", "optimization.eager_batching: "),
        (
            "instance_group { rate_limiter { resources { name: 'R' count: 4 } priority: 2 } }",
            "instance_group.rate_limiter",
        ),
        (
            "instance_group { profile: [ '0' ] passive: false }",
            "instance_group.profile, secondary_devices: models run on",
        ),
        (
            "instance_group { secondary_devices { kind: KIND_NVDLA device_id: 0 } }",
            "secondary_devices: models run on CPUs",
        ),
        (
            "optimization { cuda { graphs: true graph_spec { batch_size: 4 input { key: 'x' value"
            " { dim: [ 3 ] } } graph_lower_bound { batch_size: 1 } } output_copy_stream: true } }",
            "optimization.cuda: models run on CPUs",
        ),
        ("cc_model_filenames { key: '7.5' value: 'model_t4.onnx' }", "cc_model_filenames: those are for GPUs"),
        (
            "model_metrics { metric_control: [ { metric_identifier: { family: 'nv_first_response_ms' }"
            " histogram_options: { buckets: [ -1, 0.5, 1 ] } } ] }",
            "model_metrics: metrics have the buckets of this server",
        ),
        ('metric_tags { key: "team" value: "risk" }', "without team"),
        ("instance_group [ { count: 1 }, { kind: KIND_CPU count: 2 } ]", "instance_group: 2 groups are taken together"),
        ("instance_group [ { kind: KIND_AUTO gpus: [ 0 ] } ]", "instance_group.gpus: models run on CPUs"),
        ('instance_group [ { host_policy: "numa0" } ]', "instance_group.host_policy: "),
        (parameter("team", "risk") + parameter("TENANT", "7"), "parameters: TENANT, team mean nothing to this server"),
    ],
)
def test_what_is_accepted_with_a_note(text: str, note: str) -> None:
    (found,) = notes_of(parse(text))
    assert note in found


def test_a_note_stays_short() -> None:
    (found,) = notes_of(parse("".join(parameter(f"own{number:02}", "") for number in range(20))))
    assert found.endswith("own08, own09 and 10 others mean nothing to this server")
    (found,) = notes_of(parse(parameter("x" * 10_000, "")))
    assert len(found) < 200


@pytest.mark.parametrize(
    "text",
    [
        "",
        "model_transaction_policy { decoupled: false }",
        "optimization { graph { level: 1 } }",
        "dynamic_batching { preserve_ordering: false }",
        "input { name: 'x' data_type: TYPE_FP32 dims: [ 2, 2 ] reshape { shape: [ 4 ] } allow_ragged_batch: false }",
        parameter("execution_mode", "1") + parameter("enable_mem_arena", "0") + parameter("enable_mem_pattern", "0"),
        parameter("memory.enable_memory_arena_shrinkage", "cpu:0;gpu:0"),
    ],
)
def test_what_is_honoured_needs_no_note(text: str) -> None:
    assert notes_of(parse(text)) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_transaction_policy { decoupled: true }", "model_transaction_policy.decoupled: is not supported"),
        ("optimization { graph { level: 3 } }", "optimization.graph.level: is 3; expected -1 (basic), 0 (all), 1"),
        ("optimization { execution_accelerators { } }", 'field "execution_accelerators" of ModelOptimizationPolicy is'),
        ("instance_group { passive: true }", "instance_group.passive: is not supported: each instance answers"),
        ("sequence_batching { }", 'field "sequence_batching" of ModelConfig is not supported'),
        ("input { name: 'x' data_type: 11 dims: 1 allow_ragged_batch: true }", 'input: "x": allow_ragged_batch is not'),
        ("output { name: 'y' data_type: 11 dims: 1 is_shape_tensor: true }", 'output: "y": is_shape_tensor is not'),
        (
            "input { name: 'x' data_type: 11 dims: [ 2, 2 ] reshape { shape: [ 5 ] } }",
            'input: "x" has dims [2, 2] and reshape.shape [5]; expected as many elements in both',
        ),
        ("input { name: 'x' data_type: 11 dims: [ -1 ] reshape { shape: [ 1 ] } }", "dimensions of any size (-1)"),
        ("input { name: 'x' data_type: 11 dims: [ 2 ] reshape { shape: [ -2, -1 ] } }", "expected as many elements"),
        ("input { name: 'x' data_type: 11 reshape { shape: [ ] } }", "has dims [] and reshape.shape []"),
        (parameter("intra_op_thread_counts", "1"), 'did you mean "intra_op_thread_count"?'),
        (parameter("label", "a,b"), 'parameters: "label" is not supported; did you mean "labels"?'),
    ],
)
def test_what_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ModelNotServable) as failure:
        parse(text)
    assert message in failure.value.message


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("optimization { graph { level: -1 } }", SessionOptions(graph_optimization_level="basic")),
        ("optimization { graph { level: 1 } }", SessionOptions(graph_optimization_level="extended")),
        ("optimization { graph { level: 2 } }", SessionOptions(graph_optimization_level="disable")),
        (
            "optimization { graph { level: 2 } }" + parameter("graph_optimization_level", "all"),
            SessionOptions(graph_optimization_level="all"),
        ),
        (parameter("execution_mode", "1"), SessionOptions(execution_mode="parallel")),
        (parameter("enable_mem_arena", "false"), SessionOptions(enable_mem_arena=False)),
        (parameter("enable_mem_pattern", "0"), SessionOptions(enable_mem_pattern=False)),
        (parameter("memory.enable_memory_arena_shrinkage", "cpu:0"), SessionOptions(shrink_arena=True)),
        (parameter("memory.enable_memory_arena_shrinkage", "gpu:1"), SessionOptions()),
    ],
)
def test_how_the_session_is_opened(text: str, options: SessionOptions) -> None:
    assert policy_of(parse(text)).session == options


def test_several_groups_are_that_many_instances() -> None:
    assert policy_of(parse("instance_group [ { count: 2 }, { kind: KIND_CPU } ]")).instances == 3
