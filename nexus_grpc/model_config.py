"""A model's config.pbtxt: parsed, checked, and read out once into a `ModelPolicy`.

The format is Triton's ModelConfig in protobuf text form (proto/inference/model_config.proto). What this server does not
honour is refused by name; nothing is ignored in silence. This module needs protobuf only, so every process may use it.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast, get_args

from google.protobuf import text_format

from nexus_grpc.ipc.errors import ModelNotServable
from nexus_grpc.pb.inference.model_config_pb2 import (
    DESCRIPTOR,
    TYPE_INVALID,
    ModelConfig,
    ModelInstanceGroup,
    ModelQueuePolicy,
    ModelWarmup,
)

Isolation = Literal["shared", "dedicated"]
GraphOptimization = Literal["disable", "basic", "extended", "all"]

# Far above any sensible value, and in nanoseconds still inside an int64.
QUEUE_DELAY_MAX_US = 60 * 1_000_000
TIMEOUT_MAX_US = 24 * 3600 * 1_000_000
BATCH_SIZE_MAX = 1 << 20
THREADS_MAX = 1024
IN_FLIGHT_MAX = 1 << 20
VERSION_MAX = (1 << 63) - 1

_UNKNOWN_FIELD = re.compile(r'Message type "([\w.]+)" has no field named "([^"]*)"')
_POSITION = re.compile(r"^\d+:\d+ : ")
_PROVIDER = re.compile(r"[A-Za-z0-9]+ExecutionProvider")


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a worker opens the ONNX Runtime session, from the configuration's `parameters`.

    Attributes:
        execution_providers: ONNX Runtime's names, in order of preference.
        intra_op_thread_count: threads inside an operator; 0 means one per core of the worker.
        inter_op_thread_count: threads between operators; 0 means the server's choice.
        graph_optimization_level: ONNX Runtime's GraphOptimizationLevel, by name.
    """

    execution_providers: tuple[str, ...] = ("CPUExecutionProvider",)
    intra_op_thread_count: int = 0
    inter_op_thread_count: int = 0
    graph_optimization_level: GraphOptimization = "all"


@dataclass(frozen=True, slots=True)
class DecisionPolicy:
    """What a classifier's probabilities decide, from the configuration's `parameters`.

    Attributes:
        labels: the classes' names, in the order of the probabilities; empty: the output's own, or their numbers.
        positive_class: name or number of the class that the decision is about; empty: the second of two.
        threshold: the positive class is decided for from this probability on; None: the largest probability decides.
        positive, negative: what the decisions are called, such as block and allow.
    """

    labels: tuple[str, ...] = ()
    positive_class: str = ""
    threshold: float | None = None
    positive: str = "positive"
    negative: str = "negative"


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
        session: how the session is opened.
        decision: what its probabilities decide; None where the configuration says nothing of it.
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
    session: SessionOptions = SessionOptions()
    decision: DecisionPolicy | None = None
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
        raise ModelNotServable(_printable(f"{place}: {_explain(str(error))}"), reason="BAD_MODEL_CONFIG") from None
    except (ValueError, TypeError, RecursionError) as error:
        # The parser documents ParseError only, but is written in Python and recursive.
        raise ModelNotServable(
            _printable(f"{path}: not a model configuration: {error}"), reason="BAD_MODEL_CONFIG"
        ) from None


def _explain(complaint: str) -> str:
    unknown = _UNKNOWN_FIELD.search(complaint)
    if unknown is None:
        return f"malformed: {_POSITION.sub('', complaint)[:300]}"
    message, field = unknown[1], unknown[2]
    known = DESCRIPTOR.pool.FindMessageTypeByName(message).fields_by_name
    return f'field "{field[:80]}" of {message.rpartition(".")[2]} is not supported{_did_you_mean(field, known)}'


def _printable(text: str) -> str:
    # A lone surrogate can't be sent in a gRPC status or logged.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f'; did you mean "{close[0]}"?' if close else ""


def check_config(config: ModelConfig, model_name: str) -> None:
    """Checks what can be checked without the model file; the graph is compared in the worker.

    Raises:
        ModelNotServable: the first thing that is wrong, by its field's name.
    """
    if config.name and config.name != model_name:
        raise _refusal("name", f'is "{config.name}", but the folder is "{model_name}"')
    if config.platform not in ("", "onnxruntime_onnx"):
        raise _refusal("platform", f'"{config.platform}" is not supported; expected "onnxruntime_onnx" or nothing')
    if config.backend not in ("", "onnxruntime"):
        raise _refusal("backend", f'"{config.backend}" is not supported; expected "onnxruntime" or nothing')
    if not 0 <= config.max_batch_size <= BATCH_SIZE_MAX:
        raise _refusal("max_batch_size", f"is {config.max_batch_size}; expected 0 (no batching) to {BATCH_SIZE_MAX}")
    if not is_file_name(config.default_model_filename, or_empty=True):
        raise _refusal("default_model_filename", "must be a plain file name, without folders")
    if config.response_cache.enable:
        raise _refusal("response_cache", "is not supported yet: it comes with caching")
    _check_version_policy(config)
    _check_tensors(config)
    _check_instance_group(config)
    _check_batching(config)
    rows_max = max(1, config.max_batch_size) if config.HasField("max_batch_size") else BATCH_SIZE_MAX
    for warmup in config.model_warmup:
        _check_warmup(warmup, rows_max)
    _read_parameters(config)


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
    session, isolation, decision = _read_parameters(config)
    values = _parameters_of(config)
    batching = config.dynamic_batching
    queue = batching.default_queue_policy
    group = config.instance_group[0] if config.instance_group else None
    return ModelPolicy(
        max_batch_size=config.max_batch_size if config.HasField("max_batch_size") else None,
        batching=config.HasField("dynamic_batching"),
        # Triton's default: a group that does not say how many is one instance.
        instances=0 if group is None else max(1, group.count),
        isolation=isolation,
        max_queue_delay_ns=batching.max_queue_delay_microseconds * 1000,
        preferred_batch_sizes=tuple(sorted(set(batching.preferred_batch_size))),
        max_queue_size=queue.max_queue_size,
        default_timeout_ns=queue.default_timeout_microseconds * 1000,
        allow_timeout_override=queue.allow_timeout_override,
        session=session,
        decision=decision,
        max_in_flight=_number(values, "max_in_flight", 1, IN_FLIGHT_MAX),
        fallback_version=_number(values, "fallback_version", 1, VERSION_MAX),
    )


def _refusal(field: str, complaint: str) -> ModelNotServable:
    return ModelNotServable(_printable(f"{field}: {complaint}"), reason="BAD_MODEL_CONFIG", field=field)


def _check_version_policy(config: ModelConfig) -> None:
    choice = config.version_policy.WhichOneof("policy_choice")
    if choice == "latest" and config.version_policy.latest.num_versions < 1:
        raise _refusal("version_policy.latest.num_versions", "expected 1 or more")
    if choice == "specific":
        versions = config.version_policy.specific.versions
        if not versions or min(versions) < 1:
            raise _refusal("version_policy.specific.versions", "expected one or more positive numbers")


def _check_tensors(config: ModelConfig) -> None:
    for field, tensors in (("input", config.input), ("output", config.output)):
        seen: set[str] = set()
        for tensor in tensors:
            if not tensor.name:
                raise _refusal(field, "one has no name")
            if tensor.name in seen:
                raise _refusal(field, f'"{tensor.name}" is declared twice')
            seen.add(tensor.name)
            if tensor.data_type == TYPE_INVALID:
                raise _refusal(field, f'"{tensor.name}" has no data_type')
            if any(dim != -1 and dim < 1 for dim in tensor.dims):
                raise _refusal(field, f'"{tensor.name}" has dims {list(tensor.dims)}; expected sizes, or -1 for any')
    for output in config.output:
        if not is_file_name(output.label_filename, or_empty=True):
            raise _refusal("label_filename", f'of output "{output.name}" must be a plain file name, without folders')


def _check_instance_group(config: ModelConfig) -> None:
    if len(config.instance_group) > 1:
        raise _refusal("instance_group", f"has {len(config.instance_group)} groups; one is supported")
    for group in config.instance_group:
        if group.kind == ModelInstanceGroup.KIND_GPU:
            raise _refusal("instance_group.kind", "KIND_GPU is not supported: this server runs models on CPUs")
        if group.count < 0:
            raise _refusal("instance_group.count", f"is {group.count}; expected 1 or more")


def _check_batching(config: ModelConfig) -> None:
    batching = config.dynamic_batching
    sizes = list(batching.preferred_batch_size)
    if sizes and (min(sizes) < 1 or 0 < config.max_batch_size < max(sizes)):
        raise _refusal(
            "dynamic_batching.preferred_batch_size",
            f"is {sizes}; expected 1 to max_batch_size ({config.max_batch_size})",
        )
    if batching.max_queue_delay_microseconds > QUEUE_DELAY_MAX_US:
        raise _refusal("dynamic_batching.max_queue_delay_microseconds", f"expected at most {QUEUE_DELAY_MAX_US}")
    queue = batching.default_queue_policy
    if queue.timeout_action == ModelQueuePolicy.DELAY:
        raise _refusal(
            "default_queue_policy.timeout_action", "DELAY is not supported: a request past its deadline is rejected"
        )
    if queue.default_timeout_microseconds > TIMEOUT_MAX_US:
        raise _refusal("default_queue_policy.default_timeout_microseconds", f"expected at most {TIMEOUT_MAX_US}")


def _check_warmup(warmup: ModelWarmup, rows_max: int) -> None:
    field = f'model_warmup "{warmup.name}"'
    if not warmup.name:
        raise _refusal("model_warmup.name", "expected a name")
    if not warmup.inputs:
        raise _refusal(field, "has no inputs")
    if warmup.batch_size > rows_max:
        raise _refusal(field, f"has batch_size {warmup.batch_size}; expected at most {rows_max}")
    for name, tensor in warmup.inputs.items():
        choice = tensor.WhichOneof("input_data_type")
        if tensor.data_type == TYPE_INVALID:
            raise _refusal(field, f'input "{name}" has no data_type')
        if any(dim < 1 for dim in tensor.dims):
            raise _refusal(field, f'input "{name}" has dims {list(tensor.dims)}; expected definite sizes')
        if choice is None:
            raise _refusal(field, f'input "{name}" needs zero_data, random_data or input_data_file')


def _parameters_of(config: ModelConfig) -> dict[str, str]:
    return {name: parameter.string_value.strip() for name, parameter in config.parameters.items()}


def _read_parameters(config: ModelConfig) -> tuple[SessionOptions, Isolation, DecisionPolicy | None]:
    """Reads `parameters`; each is a string, as in Triton's configuration.

    Raises:
        ModelNotServable: a name is unknown or a value out of range.
    """
    values = _parameters_of(config)
    for name in sorted(values):
        if name not in _PARAMETERS:
            raise _refusal("parameters", f'"{name}" is not supported{_did_you_mean(name, _PARAMETERS)}')
    session = SessionOptions(
        execution_providers=_providers(values.get("execution_providers", "CPUExecutionProvider")),
        intra_op_thread_count=_number(values, "intra_op_thread_count", 0, THREADS_MAX),
        inter_op_thread_count=_number(values, "inter_op_thread_count", 0, THREADS_MAX),
        graph_optimization_level=cast(
            GraphOptimization, _choice(values, "graph_optimization_level", get_args(GraphOptimization), "all")
        ),
    )
    isolation = cast(Isolation, _choice(values, "isolation", get_args(Isolation), "shared"))
    _number(values, "max_in_flight", 1, IN_FLIGHT_MAX)
    _number(values, "fallback_version", 1, VERSION_MAX)
    if "labels" in values and any(output.label_filename for output in config.output):
        raise _refusal("parameters.labels", "and a label_filename both name classes; keep one of them")
    return session, isolation, _decision(values)


_DECISION_PARAMETERS = ("labels", "positive_class", "decision_threshold", "decision_positive", "decision_negative")
_PARAMETERS = (
    "execution_providers",
    "intra_op_thread_count",
    "inter_op_thread_count",
    "graph_optimization_level",
    "isolation",
    "max_in_flight",
    "fallback_version",
    *_DECISION_PARAMETERS,
)


def _decision(values: dict[str, str]) -> DecisionPolicy | None:
    if not set(values) & set(_DECISION_PARAMETERS):
        return None
    labels = tuple(label.strip() for label in values["labels"].split(",")) if "labels" in values else ()
    if "labels" in values and (not all(labels) or len(set(labels)) < len(labels)):
        raise _refusal("parameters.labels", f'is "{values["labels"]}"; expected different names, such as "ham,spam"')
    positive = values.get("positive_class", "")
    if positive and labels and positive not in labels and not _is_index(positive, len(labels)):
        raise _refusal(
            "parameters.positive_class",
            f'is "{positive}"; expected one of the labels {", ".join(labels)}, or its number',
        )
    names = (values.get("decision_positive", "positive"), values.get("decision_negative", "negative"))
    if "decision_threshold" not in values:
        if set(values) & set(_DECISION_PARAMETERS) != {"labels"}:
            raise _refusal("parameters.decision_threshold", "is missing: decisions need one, such as 0.41")
        return DecisionPolicy(labels)
    if not all(names) or names[0] == names[1]:
        shown = " and ".join(f'"{name}"' for name in names)
        raise _refusal("parameters.decision_positive", f"and decision_negative are {shown}; expected two names")
    return DecisionPolicy(labels, positive, _threshold(values["decision_threshold"]), *names)


def _is_index(text: str, count: int) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < count


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise _refusal("parameters.decision_threshold", f'is "{text}"; expected a number from 0 to 1')
    return value


def _providers(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if not _PROVIDER.fullmatch(name):
            raise _refusal(
                "parameters.execution_providers", f'"{name}" is not a provider\'s name, such as CPUExecutionProvider'
            )
    return names


def _number(values: dict[str, str], name: str, least: int, most: int) -> int:
    """0 when it is not there."""
    text = values.get(name)
    if text is None:
        return 0
    if not (text.isascii() and text.isdecimal() and len(text) <= 18 and least <= int(text) <= most):
        automatic = "" if least else " (automatic)"
        raise _refusal(f"parameters.{name}", f'is "{text}"; expected a number from {least}{automatic} to {most}')
    return int(text)


def _choice(values: dict[str, str], name: str, choices: tuple[str, ...], default: str) -> str:
    text = values.get(name, default)
    if text not in choices:
        raise _refusal(f"parameters.{name}", f'is "{text}"; expected one of {", ".join(choices)}')
    return text
