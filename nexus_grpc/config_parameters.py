"""The `parameters` of a config.pbtxt: those that this server or Triton's ONNX Runtime backend knows. Others are their
owner's own: they are shown as they are, and noted; but one that looks like a misspelt one is refused.
"""

import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from nexus_grpc.config_images import IMAGE_PARAMETERS, ImagePolicy, read_image
from nexus_grpc.config_refusals import did_you_mean, refusal
from nexus_grpc.pb.inference.model_config_pb2 import ModelConfig

Isolation = Literal["shared", "dedicated"]
GraphOptimization = Literal["disable", "basic", "extended", "all"]
ExecutionMode = Literal["sequential", "parallel"]

THREADS_MAX = 1024
IN_FLIGHT_MAX = 1 << 20
VERSION_MAX = (1 << 63) - 1
# How like one of ours a parameter may be and still be its owner's own.
MISSPELT = 0.75
# Triton's optimization.graph.level, as its ONNX Runtime backend understands it.
GRAPH_LEVELS: dict[int, GraphOptimization] = {-1: "basic", 0: "all", 1: "extended", 2: "disable"}
SHRINKAGE = "memory.enable_memory_arena_shrinkage"

_PROVIDER = re.compile(r"[A-Za-z0-9]+ExecutionProvider")
_DEVICE = re.compile(r"(?:cpu|gpu):[0-9]+")
_TRUTH = {"0": False, "1": True, "false": False, "true": True}


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a worker opens the ONNX Runtime session, from the configuration's `parameters`.

    Attributes:
        execution_providers: ONNX Runtime's names, in order of preference.
        intra_op_thread_count: threads inside an operator; 0 means one per core of the worker.
        inter_op_thread_count: threads between operators; 0 means the server's choice.
        graph_optimization_level: ONNX Runtime's GraphOptimizationLevel, by name.
        execution_mode: whether operators that do not need each other may run at once.
        enable_mem_arena: whether memory of a run is kept for the next one.
        enable_mem_pattern: whether a run's allocations are planned from the one before.
        shrink_arena: whether what a run needed is given back after it.
    """

    execution_providers: tuple[str, ...] = ("CPUExecutionProvider",)
    intra_op_thread_count: int = 0
    inter_op_thread_count: int = 0
    graph_optimization_level: GraphOptimization = "all"
    execution_mode: ExecutionMode = "sequential"
    enable_mem_arena: bool = True
    enable_mem_pattern: bool = True
    shrink_arena: bool = False


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


def _parameters_of(config: ModelConfig) -> dict[str, str]:
    return {name: parameter.string_value.strip() for name, parameter in config.parameters.items()}


def read_parameters(config: ModelConfig) -> tuple[SessionOptions, Isolation, DecisionPolicy | None]:
    """Reads `parameters`; each is a string, as in Triton's configuration.

    Raises:
        ModelNotServable: a name is probably misspelt, or a value out of range.
    """
    values = _parameters_of(config)
    for name in own_parameters(config):
        meant = did_you_mean(name, _PARAMETERS, MISSPELT)
        if meant:
            raise refusal("parameters", f'"{name}" is not supported{meant}')
    session = SessionOptions(
        execution_providers=_providers(values.get("execution_providers", "CPUExecutionProvider")),
        intra_op_thread_count=_number(values, "intra_op_thread_count", 0, THREADS_MAX),
        inter_op_thread_count=_number(values, "inter_op_thread_count", 0, THREADS_MAX),
        graph_optimization_level=_graph_optimization(config, values),
        execution_mode=_execution_mode(values),
        enable_mem_arena=_truth(values, "enable_mem_arena", default=True),
        enable_mem_pattern=_truth(values, "enable_mem_pattern", default=True),
        shrink_arena=_shrinks(values),
    )
    isolation = cast(Isolation, _choice(values, "isolation", get_args(Isolation), "shared"))
    in_flight_and_fallback(config)
    image_policy(config)
    if "labels" in values and any(output.label_filename for output in config.output):
        raise refusal("parameters.labels", "and a label_filename both name classes; keep one of them")
    return session, isolation, _decision(values)


def image_policy(config: ModelConfig) -> ImagePolicy | None:
    """How images become numbers; None where nothing is said. Raises ModelNotServable."""
    return read_image(_parameters_of(config))


def in_flight_and_fallback(config: ModelConfig) -> tuple[int, int]:
    """`max_in_flight` and `fallback_version`; 0 where one is not there. Raises ModelNotServable."""
    values = _parameters_of(config)
    return _number(values, "max_in_flight", 1, IN_FLIGHT_MAX), _number(values, "fallback_version", 1, VERSION_MAX)


def own_parameters(config: ModelConfig) -> tuple[str, ...]:
    """The names of those that mean nothing to this server."""
    return tuple(name for name in sorted(config.parameters) if name not in _PARAMETERS)


def _graph_optimization(config: ModelConfig, values: dict[str, str]) -> GraphOptimization:
    """As the parameter says; else as Triton's optimization.graph.level."""
    level = config.optimization.graph.level
    if level not in GRAPH_LEVELS:
        raise refusal("optimization.graph.level", f"is {level}; expected -1 (basic), 0 (all), 1 (extended) or 2 (none)")
    choices = get_args(GraphOptimization)
    return cast(GraphOptimization, _choice(values, "graph_optimization_level", choices, GRAPH_LEVELS[level]))


def _execution_mode(values: dict[str, str]) -> ExecutionMode:
    """Triton writes 0 and 1."""
    text = values.get("execution_mode", "0")
    modes: dict[str, ExecutionMode] = {"0": "sequential", "1": "parallel"}
    if text not in modes:
        raise refusal("parameters.execution_mode", f'is "{text}"; expected 0 (sequential) or 1 (parallel)')
    return modes[text]


def _truth(values: dict[str, str], name: str, *, default: bool) -> bool:
    text = values.get(name)
    if text is not None and text.lower() not in _TRUTH:
        raise refusal(f"parameters.{name}", f'is "{text}"; expected 0 or 1')
    return default if text is None else _TRUTH[text.lower()]


def _shrinks(values: dict[str, str]) -> bool:
    """Whose arenas shrink, as in "cpu:0;gpu:0": here there is one, the CPU's."""
    text = values.get(SHRINKAGE)
    if text is None:
        return False
    devices = text.split(";")
    if not all(_DEVICE.fullmatch(device) for device in devices):
        raise refusal(f"parameters.{SHRINKAGE}", f'is "{text}"; expected cpu:0')
    return "cpu:0" in devices


_DECISION_PARAMETERS = ("labels", "positive_class", "decision_threshold", "decision_positive", "decision_negative")
_PARAMETERS = (
    "execution_providers",
    "intra_op_thread_count",
    "inter_op_thread_count",
    "graph_optimization_level",
    "execution_mode",
    "enable_mem_arena",
    "enable_mem_pattern",
    SHRINKAGE,
    "isolation",
    "max_in_flight",
    "fallback_version",
    *_DECISION_PARAMETERS,
    *IMAGE_PARAMETERS,
)


def _decision(values: dict[str, str]) -> DecisionPolicy | None:
    if not set(values) & set(_DECISION_PARAMETERS):
        return None
    labels = tuple(label.strip() for label in values["labels"].split(",")) if "labels" in values else ()
    if "labels" in values and (not all(labels) or len(set(labels)) < len(labels)):
        raise refusal("parameters.labels", f'is "{values["labels"]}"; expected different names, such as "ham,spam"')
    positive = values.get("positive_class", "")
    if positive and labels and positive not in labels and not _is_index(positive, len(labels)):
        raise refusal(
            "parameters.positive_class",
            f'is "{positive}"; expected one of the labels {", ".join(labels)}, or its number',
        )
    names = (values.get("decision_positive", "positive"), values.get("decision_negative", "negative"))
    if "decision_threshold" not in values:
        if set(values) & set(_DECISION_PARAMETERS) != {"labels"}:
            raise refusal("parameters.decision_threshold", "is missing: decisions need one, such as 0.41")
        return DecisionPolicy(labels)
    if not all(names) or names[0] == names[1]:
        shown = " and ".join(f'"{name}"' for name in names)
        raise refusal("parameters.decision_positive", f"and decision_negative are {shown}; expected two names")
    return DecisionPolicy(labels, positive, _threshold(values["decision_threshold"]), *names)


def _is_index(text: str, count: int) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < count


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise refusal("parameters.decision_threshold", f'is "{text}"; expected a number from 0 to 1')
    return value


def _providers(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if not _PROVIDER.fullmatch(name):
            raise refusal(
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
        raise refusal(f"parameters.{name}", f'is "{text}"; expected a number from {least}{automatic} to {most}')
    return int(text)


def _choice(values: dict[str, str], name: str, choices: tuple[str, ...], default: str) -> str:
    text = values.get(name, default)
    if text not in choices:
        raise refusal(f"parameters.{name}", f'is "{text}"; expected one of {", ".join(choices)}')
    return text
