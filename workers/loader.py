"""From a model's place in the repository to a Model that is ready: open, check against its config, derive, warm up."""

import base64
import dataclasses
import functools
import math
from typing import Any

import numpy as np

from nexus_grpc.ipc.errors import ModelNotServable, NexusError
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.pb.inference import model_config_pb2 as config_pb

from .batching import declared, derived
from .decisions import decision_of
from .images import image_input
from .model import Model, QueuePolicy, Shape, TensorSpec, shape_fits, shape_text, zeros
from .reshape import reshaped
from .sample import sample_feeds
from .session import OpenedSession, open_session
from .tensors import BYTES, Array, decode_bytes_tensor
from .witness import KEPT_BYTES_MAX

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"
# In the config in force: why requests are batched, or not.
BATCHING_PARAMETER = "batching"


@dataclasses.dataclass(frozen=True, slots=True)
class LoadOrder:
    """What the supervisor asks to be loaded; `policy` is repository policy as plain values."""

    slot: int
    name: str
    version: str
    path: str
    config: config_pb.ModelConfig | None
    policy: dict[str, Any]
    labels: dict[str, tuple[str, ...]]
    warmup_files: dict[str, str]
    default_max_batch_size: int
    cores: int
    version_name: str = ""
    incarnation: int = 0
    # Why the trial says that requests must not be batched, whatever is proved; empty: it says nothing.
    batching_veto: str = ""
    # Whether the trial's sample has run there: it will do here, and so tells whose fault a failed run is.
    sample_runs: bool = False

    @property
    def starts_threads(self) -> bool:
        """Whether ONNX Runtime starts threads for this model."""
        session: dict[str, Any] = self.policy["session"]
        inside, between = session.get("intra_op_thread_count"), session.get("inter_op_thread_count")
        between = between or (self.cores if session.get("execution_mode") == "parallel" else 1)
        return (inside or self.cores) > 1 or between > 1

    @classmethod
    def from_message(cls, message: dict[str, Any], cores: int) -> "LoadOrder":
        encoded = message["config"]
        return cls(
            slot=message["slot"],
            name=message["name"],
            version=message["version"],
            path=message["path"],
            config=config_pb.ModelConfig.FromString(base64.b64decode(encoded)) if encoded is not None else None,
            policy=message["policy"],
            labels={name: tuple(labels) for name, labels in message["labels"].items()},
            warmup_files=message["warmup_files"],
            default_max_batch_size=message["default_max_batch_size"],
            cores=cores,
            version_name=message.get("version_name", ""),
            incarnation=message.get("incarnation", 0),
            batching_veto=message.get("batching_veto", ""),
            sample_runs=message.get("sample_runs", False),
        )


def load_model(order: LoadOrder) -> Model:
    """Open, check, warm up. Raises ModelNotServable with the reason; nothing is left behind then."""
    opened = open_session(order.path, order.name, order.policy["session"], order.cores)
    opened = _with_declared_shapes(order, reshaped(opened, order.config, order.name))
    _check_config(order, opened)
    model = _model(order, opened)
    if order.sample_runs:
        model.witness.knows(functools.partial(sample_feeds, model.inputs))
    _warm_up(order, model)
    return model


def _model(order: LoadOrder, opened: OpenedSession) -> Model:
    explicit = order.config is not None and order.config.HasField("max_batch_size")
    max_batch_size = order.config.max_batch_size if explicit and order.config is not None else 0
    model = Model(
        slot=order.slot,
        name=order.name,
        version=order.version,
        inputs=opened.inputs,
        outputs=tuple(_with_labels(order, spec) for spec in opened.outputs),
        max_batch_size=max_batch_size,
        batch_limit_is_strict=explicit,
        queue=_queue_policy(order.policy),
        run=opened.run,
        constants=opened.constants,
        version_names=frozenset({order.version_name}),
    )
    model.decision = decision_of(order.policy.get("decision"), model)
    model.image = image_input(order.policy.get("image"), model)
    if model.class_labels:
        named = dataclasses.replace(model.outputs[model.probabilities_index], labels=model.class_labels)
        model.outputs = tuple(
            named if index == model.probabilities_index else spec for index, spec in enumerate(model.outputs)
        )
    if explicit:
        model.batching = declared(max_batch_size)
    else:
        batching = derived(order.path, opened, order.batching_veto)
        model.batching, model.equal_sizes = batching.text, batching.equal_sizes
        model.max_batch_size = order.default_max_batch_size if batching.is_proved else 0
    if model.batchable:
        model.outputs = tuple(_with_rows(spec) for spec in model.outputs)
    return model


def _with_declared_shapes(order: LoadOrder, opened: OpenedSession) -> OpenedSession:
    """Of tensors whose number of dimensions the graph does not say, what config.pbtxt says."""
    config = order.config
    if config is None:
        return opened
    declarations: tuple[Any, ...] = (*config.input, *config.output)
    dims = {item.name: tuple(item.dims) for item in declarations if item.dims}
    rows = (-1,) if config.max_batch_size > 0 else ()

    def declared(spec: TensorSpec) -> TensorSpec:
        if not spec.any_rank or spec.name not in dims:
            return spec
        return dataclasses.replace(spec, shape=(*rows, *dims[spec.name]), any_rank=False)

    inputs, outputs = map(declared, opened.inputs), map(declared, opened.outputs)
    return dataclasses.replace(opened, inputs=tuple(inputs), outputs=tuple(outputs))


def _with_rows(spec: TensorSpec) -> TensorSpec:
    """An output of a batched model, whatever number of rows the graph declares."""
    return dataclasses.replace(spec, shape=(-1, *spec.row_shape)) if spec.shape else spec


def _with_labels(order: LoadOrder, spec: TensorSpec) -> TensorSpec:
    labels = order.labels.get(spec.name)
    return dataclasses.replace(spec, labels=labels) if labels else spec


def _queue_policy(policy: dict[str, Any]) -> QueuePolicy:
    return QueuePolicy(
        max_queue_delay_ns=policy["max_queue_delay_ns"],
        preferred_batch_sizes=tuple(policy["preferred_batch_sizes"]),
        max_queue_size=policy["max_queue_size"],
        default_timeout_ns=policy["default_timeout_ns"],
        allow_timeout_override=policy["allow_timeout_override"] or not policy["default_timeout_ns"],
        priority_levels=policy["priority_levels"],
        default_priority=policy["default_priority"],
    )


def _check_config(order: LoadOrder, opened: OpenedSession) -> None:
    """Raises ModelNotServable when config.pbtxt says something else than the graph."""
    if order.config is None:
        return
    batched = order.config.max_batch_size > 0
    if batched:
        for spec in opened.inputs:
            _check_rank(order, spec)
            _check_rows(order, order.config, spec, (-1,))
        for spec in opened.outputs:
            if not spec.any_rank:  # it is what it is; and exporters write 1 for the number of rows
                _check_rows(order, order.config, spec, (-1, 1))
    _check_tensors(order, "input", order.config.input, (*opened.inputs, *opened.constants), batched)
    _check_tensors(order, "output", order.config.output, opened.outputs, batched)


def _check_rows(order: LoadOrder, config: config_pb.ModelConfig, spec: TensorSpec, fine: tuple[int, ...]) -> None:
    """Raises ModelNotServable where what the model declares leaves no room for rows."""
    if not spec.shape or spec.shape[0] not in fine:
        raise ModelNotServable(
            f"config.pbtxt of '{order.name}' sets max_batch_size {config.max_batch_size}, but"
            f" '{spec.name}' has the fixed shape {shape_text(spec.shape)}; set max_batch_size: 0"
        )


def _check_rank(order: LoadOrder, spec: TensorSpec) -> None:
    """Raises ModelNotServable: a batched input must say what a row is."""
    if spec.any_rank:
        raise ModelNotServable(
            f"config.pbtxt of '{order.name}' sets a max_batch_size, but the model does not say how many dimensions"
            f" '{spec.name}' has; give its dims in config.pbtxt"
        )


def _check_tensors(order: LoadOrder, kind: str, declared: Any, specs: tuple[TensorSpec, ...], batched: bool) -> None:
    known = {spec.name: spec for spec in specs}
    for item in declared:
        spec = known.get(item.name)
        if spec is None:
            names = ", ".join(f"'{name}'" for name in known)
            raise ModelNotServable(
                f"config.pbtxt of '{order.name}' declares {kind} '{item.name}', which the model does not have: {names}"
            )
        wanted = config_pb.DataType.Name(item.data_type)
        if item.data_type and wanted != spec.datatype.config:
            raise ModelNotServable(
                f"config.pbtxt of '{order.name}': {kind} '{item.name}' is {wanted}, the model has"
                f" {spec.datatype.config}"
            )
        has_rows = not spec.is_constant and (batched or len(item.dims) == len(spec.shape) - 1)
        shape = spec.row_shape if has_rows else spec.shape
        if item.dims and not (
            spec.any_rank or shape_fits(shape, tuple(item.dims)) or shape_fits(tuple(item.dims), shape)
        ):
            raise ModelNotServable(
                f"config.pbtxt of '{order.name}': {kind} '{item.name}' has dims {list(item.dims)}, the model has"
                f" {shape_text(shape)}"
            )


def _warm_up(order: LoadOrder, model: Model) -> None:
    """Run the config's warm-up samples. Raises ModelNotServable when one fails."""
    if order.config is None:
        return
    for sample in order.config.model_warmup:
        try:
            feeds = {
                name: _warmup_array(order, model, name, item, sample.batch_size) for name, item in sample.inputs.items()
            }
            for _ in range(max(1, sample.count)):
                model.run(feeds, False)
            model.witness.keep(feeds, 0, 0, KEPT_BYTES_MAX)
        except ModelNotServable:
            raise
        except NexusError as error:
            raise ModelNotServable(f"warm-up '{sample.name}' of model '{order.name}' failed: {error.message}") from None


def _warmup_array(order: LoadOrder, model: Model, name: str, item: Any, batch_size: int) -> Array:
    spec = model.input_named(name)
    if spec is None:
        raise ModelNotServable(f"warm-up of model '{order.name}' names input '{name}', which the model does not have")
    shape = (max(1, batch_size), *item.dims) if model.batchable else tuple(item.dims)
    if not shape_fits(spec.shape, shape):
        raise ModelNotServable(
            f"warm-up of model '{order.name}': input '{name}' is {shape_text(shape)}, the model has"
            f" {shape_text(spec.shape)}"
        )
    if item.WhichOneof("input_data_type") == "input_data_file":
        return _warmup_file(order, spec, shape, item.input_data_file)
    if item.random_data and spec.datatype.is_float:
        return np.random.default_rng(7).random(shape).astype(spec.datatype.dtype)
    return zeros(spec, shape)


def _warmup_file(order: LoadOrder, spec: TensorSpec, shape: Shape, file_name: str) -> Array:
    with open(order.warmup_files[file_name], "rb") as file:
        content = file.read()
    count = math.prod(shape)
    if spec.datatype is BYTES:
        return decode_bytes_tensor(content, count, spec.name).reshape(shape)
    if len(content) != count * spec.datatype.itemsize_bytes:
        raise ModelNotServable(
            f"warm-up file '{file_name}' of model '{order.name}' has {len(content)} bytes, expected"
            f" {count * spec.datatype.itemsize_bytes}"
        )
    return np.frombuffer(content, dtype=spec.datatype.dtype).reshape(shape)


def metadata_of(model: Model) -> pb.ModelMetadataResponse:
    """ModelMetadata without `versions`, which the front knows."""
    metadata = pb.ModelMetadataResponse(name=model.name, platform=PLATFORM)
    for specs, tensors in ((model.inputs, metadata.inputs), (model.outputs, metadata.outputs)):
        for spec in specs:
            tensors.add(name=spec.name, datatype=spec.datatype.name, shape=spec.shape)
    return metadata


def config_of(order: LoadOrder, model: Model) -> config_pb.ModelConfig:
    """The config in force: what config.pbtxt says, completed from the graph."""
    config = config_pb.ModelConfig()
    if order.config is not None:
        config.CopyFrom(order.config)
    config.name, config.platform, config.backend = model.name, PLATFORM, BACKEND
    note_batching(config, model)
    config.default_model_filename = config.default_model_filename or "model.onnx"
    if not config.HasField("version_policy"):
        config.version_policy.latest.num_versions = 1
    if model.batchable and not config.HasField("dynamic_batching"):
        config.dynamic_batching.SetInParent()
    _complete(config.input, config_pb.ModelInput, model.inputs, model.batchable)
    for item, spec in zip(config.input, model.inputs, strict=True):
        item.optional = spec.optional
    _complete(config.output, config_pb.ModelOutput, model.outputs, model.batchable)
    return config


def note_batching(config: config_pb.ModelConfig, model: Model) -> None:
    config.max_batch_size = model.max_batch_size
    config.parameters[BATCHING_PARAMETER].string_value = model.batching


def _complete(declared: Any, kind: Any, specs: tuple[TensorSpec, ...], batched: bool) -> None:
    """Bring a config's inputs or outputs into the graph's order, with its datatypes and dims."""
    old = {item.name: item for item in declared}
    completed = []
    for spec in specs:
        item = kind()
        if spec.name in old:
            item.CopyFrom(old[spec.name])
        item.name = spec.name
        item.data_type = config_pb.DataType.Value(spec.datatype.config)
        del item.dims[:]
        item.dims.extend(spec.row_shape if batched else spec.shape)
        completed.append(item)
    del declared[:]
    declared.extend(completed)
