"""A model's config.pbtxt: parsed, checked, and read out once into a `ModelPolicy`.

The format is Triton's ModelConfig in protobuf text form (proto/inference/model_config.proto). What this server does not
honour is refused by name; nothing is ignored in silence. This module needs protobuf only, so every process may use it.
"""

import math
import re
from dataclasses import dataclass
from dataclasses import field as dataclass_field

from google.protobuf import text_format

from nexus_grpc.config_images import ImagePolicy
from nexus_grpc.config_parameters import (
    DecisionPolicy,
    Isolation,
    SessionOptions,
    image_policy,
    in_flight_and_fallback,
    read_parameters,
)
from nexus_grpc.config_refusals import did_you_mean, printable, refusal
from nexus_grpc.ipc.errors import ModelNotServable
from nexus_grpc.pb.inference.model_config_pb2 import (
    DESCRIPTOR,
    TYPE_INVALID,
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelQueuePolicy,
    ModelWarmup,
)

# Far above any sensible value, and in nanoseconds still inside an int64.
QUEUE_DELAY_MAX_US = 60 * 1_000_000
TIMEOUT_MAX_US = 24 * 3600 * 1_000_000
BATCH_SIZE_MAX = 1 << 20
PRIORITY_LEVELS_MAX = 1 << 20

_UNKNOWN_FIELD = re.compile(r'Message type "([\w.]+)" has no field named "([^"]*)"')
_POSITION = re.compile(r"^\d+:\d+ : ")


@dataclass(frozen=True, slots=True)
class ModelPolicy:
    """What the server needs from a configuration, read out once. The defaults are those of an absent config.pbtxt.

    Attributes:
        max_batch_size: rows per batch; 0 means that the model does not batch, None that it is derived from the graph.
        batching: whether the configuration has a `dynamic_batching` block.
        instances: how many workers hold the model; 0 means every worker.
        isolation: `dedicated` keeps other models out of this model's workers.
        max_queue_delay_ns: how long a worker waits for a batch to fill; 0 means not at all.
        preferred_batch_sizes: rows, ascending; a batch of such a size does not wait any longer.
        max_queue_size: requests waiting for the model; 0 means that only the rings limit them.
        default_timeout_ns: longest wait in the queue of a request that does not say; 0 means none.
        allow_timeout_override: whether a request's `timeout` parameter may shorten that.
        priority_levels: levels of the queue, 1 going first; 0 = none. Requests say theirs by the parameter `priority`.
        default_priority: the level of those that say none.
        session: how the session is opened.
        decision: what its probabilities decide; None where the configuration says nothing of it.
        image: how images become its numbers; None where the configuration says nothing of it.
        max_in_flight: requests that the model may have in flight; 0 where the configuration says nothing of it.
        fallback_version: the version that answers while one of the others keeps failing; 0 = none.
    """

    max_batch_size: int | None = None
    batching: bool = False
    instances: int = 0
    isolation: Isolation = "shared"
    max_queue_delay_ns: int = 0
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_size: int = 0
    default_timeout_ns: int = 0
    allow_timeout_override: bool = False
    priority_levels: int = 0
    default_priority: int = 0
    session: SessionOptions = dataclass_field(default_factory=SessionOptions)
    decision: DecisionPolicy | None = None
    image: ImagePolicy | None = None
    max_in_flight: int = 0
    fallback_version: int = 0


def parse_config(text: str, *, path: str) -> ModelConfig:
    """Parses protobuf text.

    Args:
        text: the file's contents.
        path: how messages name the file.

    Raises:
        ModelNotServable: a field is unknown or malformed; the message starts with `path:line:column`.
    """
    try:
        return text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        place = ":".join(str(part) for part in (path, error.GetLine(), error.GetColumn()) if part is not None)
        raise ModelNotServable(printable(f"{place}: {_explain(str(error))}"), reason="BAD_MODEL_CONFIG") from None
    except (ValueError, TypeError, RecursionError) as error:
        # The parser documents ParseError only, but is written in Python and recursive.
        raise ModelNotServable(
            printable(f"{path}: not a model configuration: {error}"), reason="BAD_MODEL_CONFIG"
        ) from None


def _explain(complaint: str) -> str:
    unknown = _UNKNOWN_FIELD.search(complaint)
    if unknown is None:
        return f"malformed: {_POSITION.sub('', complaint)[:300]}"
    message, field = unknown[1], unknown[2]
    known = DESCRIPTOR.pool.FindMessageTypeByName(message).fields_by_name
    return f'field "{field[:80]}" of {message.rpartition(".")[2]} is not supported{did_you_mean(field, known)}'


def check_config(config: ModelConfig, model_name: str) -> None:
    """Checks what can be checked without the model file; the graph is compared in the worker.

    Raises:
        ModelNotServable: the first thing that is wrong, by its field's name.
    """
    if config.name and config.name != model_name:
        raise refusal("name", f'is "{config.name}", but the folder is "{model_name}"')
    if config.platform not in ("", "onnxruntime_onnx"):
        raise refusal("platform", f'"{config.platform}" is not supported; expected "onnxruntime_onnx" or nothing')
    if config.backend not in ("", "onnxruntime"):
        raise refusal("backend", f'"{config.backend}" is not supported; expected "onnxruntime" or nothing')
    if not 0 <= config.max_batch_size <= BATCH_SIZE_MAX:
        raise refusal("max_batch_size", f"is {config.max_batch_size}; expected 0 (no batching) to {BATCH_SIZE_MAX}")
    if not is_file_name(config.default_model_filename, or_empty=True):
        raise refusal("default_model_filename", "must be a plain file name, without folders")
    if config.response_cache.enable:
        raise refusal("response_cache", "is not supported yet: it comes with caching")
    if config.model_transaction_policy.decoupled:
        raise refusal("model_transaction_policy.decoupled", "is not supported: each request has one answer")
    _check_version_policy(config)
    _check_tensors(config)
    _check_instance_group(config)
    _check_batching(config)
    rows_max = max(1, config.max_batch_size) if config.HasField("max_batch_size") else BATCH_SIZE_MAX
    for warmup in config.model_warmup:
        _check_warmup(warmup, rows_max)
    read_parameters(config)


def is_file_name(name: str, *, or_empty: bool = False) -> bool:
    """Whether `name` names a file in its folder, and can't lead out of it."""
    if not name:
        return or_empty
    return name not in (".", "..") and not any(char in "/\\\0" for char in name)


def policy_of(config: ModelConfig) -> ModelPolicy:
    """Reads out a checked configuration.

    Raises:
        ModelNotServable: the `parameters` are wrong (as `check_config` does).
    """
    session, isolation, decision = read_parameters(config)
    max_in_flight, fallback_version = in_flight_and_fallback(config)
    batching = config.dynamic_batching
    queue = batching.default_queue_policy
    return ModelPolicy(
        max_batch_size=config.max_batch_size if config.HasField("max_batch_size") else None,
        batching=config.HasField("dynamic_batching"),
        # Triton's default: a group that does not say how many is one instance.
        instances=sum(max(1, group.count) for group in config.instance_group),
        isolation=isolation,
        max_queue_delay_ns=batching.max_queue_delay_microseconds * 1000,
        preferred_batch_sizes=tuple(sorted(set(batching.preferred_batch_size))),
        max_queue_size=queue.max_queue_size,
        default_timeout_ns=queue.default_timeout_microseconds * 1000,
        allow_timeout_override=queue.allow_timeout_override,
        priority_levels=min(batching.priority_levels, PRIORITY_LEVELS_MAX),
        default_priority=_default_priority(batching),
        session=session,
        decision=decision,
        image=image_policy(config),
        max_in_flight=max_in_flight,
        fallback_version=fallback_version,
    )


def _default_priority(batching: ModelDynamicBatching) -> int:
    """The last level, unless it is said. Triton asks for a word on it; here none is needed."""
    levels = min(batching.priority_levels, PRIORITY_LEVELS_MAX)
    default = batching.default_priority_level
    return default if 0 < default <= levels else levels


def _check_version_policy(config: ModelConfig) -> None:
    choice = config.version_policy.WhichOneof("policy_choice")
    if choice == "latest" and config.version_policy.latest.num_versions < 1:
        raise refusal("version_policy.latest.num_versions", "expected 1 or more")
    if choice == "specific":
        versions = config.version_policy.specific.versions
        if not versions or min(versions) < 1:
            raise refusal("version_policy.specific.versions", "expected one or more positive numbers")


def _check_tensors(config: ModelConfig) -> None:
    for field, tensors in (("input", config.input), ("output", config.output)):
        seen: set[str] = set()
        for tensor in tensors:
            if not tensor.name:
                raise refusal(field, "one has no name")
            if tensor.name in seen:
                raise refusal(field, f'"{tensor.name}" is declared twice')
            seen.add(tensor.name)
            if tensor.data_type == TYPE_INVALID:
                raise refusal(field, f'"{tensor.name}" has no data_type')
            if any(dim != -1 and dim < 1 for dim in tensor.dims):
                raise refusal(field, f'"{tensor.name}" has dims {list(tensor.dims)}; expected sizes, or -1 for any')
            _check_reshape(field, tensor)
            if tensor.is_shape_tensor:
                raise refusal(field, f'"{tensor.name}": is_shape_tensor is not supported: TensorRT has those')
    for tensor in config.input:
        if tensor.allow_ragged_batch:
            raise refusal("input", f'"{tensor.name}": allow_ragged_batch is not supported; set max_batch_size: 0')
    for output in config.output:
        if not is_file_name(output.label_filename, or_empty=True):
            raise refusal("label_filename", f'of output "{output.name}" must be a plain file name, without folders')


def _check_reshape(field: str, tensor: ModelInput | ModelOutput) -> None:
    """As many elements, and as many dimensions of any size, before and after."""
    if not tensor.HasField("reshape"):
        return
    dims, shape = list(tensor.dims), list(tensor.reshape.shape)
    fixed = [math.prod(dim for dim in each if dim != -1) for each in (dims, shape)]
    if not dims or min(shape, default=1) < -1 or fixed[0] != fixed[1] or dims.count(-1) != shape.count(-1):
        raise refusal(
            field,
            f'"{tensor.name}" has dims {dims} and reshape.shape {shape}; expected as many elements in both, and as many'
            " dimensions of any size (-1)",
        )


def _check_instance_group(config: ModelConfig) -> None:
    for group in config.instance_group:
        if group.kind == ModelInstanceGroup.KIND_GPU:
            raise refusal("instance_group.kind", "KIND_GPU is not supported: this server runs models on CPUs")
        if group.passive:
            raise refusal("instance_group.passive", "is not supported: each instance answers requests")
        if group.count < 0:
            raise refusal("instance_group.count", f"is {group.count}; expected 1 or more")


def _check_batching(config: ModelConfig) -> None:
    batching = config.dynamic_batching
    sizes = list(batching.preferred_batch_size)
    if sizes and (min(sizes) < 1 or 0 < config.max_batch_size < max(sizes)):
        raise refusal(
            "dynamic_batching.preferred_batch_size",
            f"is {sizes}; expected 1 to max_batch_size ({config.max_batch_size})",
        )
    if batching.max_queue_delay_microseconds > QUEUE_DELAY_MAX_US:
        raise refusal("dynamic_batching.max_queue_delay_microseconds", f"expected at most {QUEUE_DELAY_MAX_US}")
    queue = batching.default_queue_policy
    if queue.timeout_action == ModelQueuePolicy.DELAY:
        raise refusal(
            "default_queue_policy.timeout_action", "DELAY is not supported: a request past its deadline is rejected"
        )
    if queue.default_timeout_microseconds > TIMEOUT_MAX_US:
        raise refusal("default_queue_policy.default_timeout_microseconds", f"expected at most {TIMEOUT_MAX_US}")


def _check_warmup(warmup: ModelWarmup, rows_max: int) -> None:
    field = f'model_warmup "{warmup.name}"'
    if not warmup.name:
        raise refusal("model_warmup.name", "expected a name")
    if not warmup.inputs:
        raise refusal(field, "has no inputs")
    if warmup.batch_size > rows_max:
        raise refusal(field, f"has batch_size {warmup.batch_size}; expected at most {rows_max}")
    for name, tensor in warmup.inputs.items():
        choice = tensor.WhichOneof("input_data_type")
        if tensor.data_type == TYPE_INVALID:
            raise refusal(field, f'input "{name}" has no data_type')
        if any(dim < 1 for dim in tensor.dims):
            raise refusal(field, f'input "{name}" has dims {list(tensor.dims)}; expected definite sizes')
        if choice is None:
            raise refusal(field, f'input "{name}" needs zero_data, random_data or input_data_file')
