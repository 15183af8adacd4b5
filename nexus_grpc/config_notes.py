"""What a config.pbtxt from a Triton repository says that is accepted and has no effect here, or another one.

Each changes no answer. It is said in the log when the model is found, so that nobody waits for an effect.
"""

from collections.abc import Iterable, Iterator

from nexus_grpc.config_parameters import own_parameters
from nexus_grpc.config_refusals import printable
from nexus_grpc.pb.inference.model_config_pb2 import ModelConfig

# So much is shown of what may be any text.
NAMES_MAX, NAME_CHARACTERS_MAX = 10, 64


def notes_of(config: ModelConfig) -> tuple[str, ...]:
    """One line for each, beginning with its field."""
    return (*_scheduling(config), *_placement(config), *_optimization(config), *_own(config))


def _scheduling(config: ModelConfig) -> Iterator[str]:
    batching = config.dynamic_batching
    if batching.preserve_ordering:
        yield "dynamic_batching.preserve_ordering: a stream's answers come in the order of its requests anyway"


def _placement(config: ModelConfig) -> Iterator[str]:
    groups = config.instance_group
    if len(groups) > 1:
        yield f"instance_group: {len(groups)} groups are taken together"
    if any(group.gpus for group in groups):
        yield "instance_group.gpus: models run on CPUs"
    if any(group.host_policy for group in groups):
        yield "instance_group.host_policy: workers have cores of their own (--cpus)"
    if any(group.HasField("rate_limiter") for group in groups):
        yield "instance_group.rate_limiter: what a model may have in flight is its parameter max_in_flight"
    if any(group.profile or group.secondary_devices for group in groups):
        yield "instance_group.profile, secondary_devices: models run on CPUs"


def _optimization(config: ModelConfig) -> Iterator[str]:
    policy = config.optimization
    if policy.HasField("input_pinned_memory") or policy.HasField("output_pinned_memory"):
        yield "optimization.*_pinned_memory: there is no GPU to copy to"
    if policy.gather_kernel_buffer_threshold:
        yield "optimization.gather_kernel_buffer_threshold: there is no GPU to copy to"
    if policy.HasField("cuda"):
        yield "optimization.cuda: models run on CPUs"
    if policy.priority:
        yield "optimization.priority: models have no priority, callers have"
    if policy.eager_batching:
        yield "optimization.eager_batching: batches are made while nobody waits anyway"


def _own(config: ModelConfig) -> Iterator[str]:
    if config.metric_tags:
        yield f"metric_tags: metrics have the labels of this server, without {_names(config.metric_tags)}"
    if config.HasField("model_metrics"):
        yield "model_metrics: metrics have the buckets of this server"
    if config.cc_model_filenames:
        yield "cc_model_filenames: those are for GPUs; here the file is default_model_filename"
    own = own_parameters(config)
    if own:
        yield f"parameters: {_names(own)} mean nothing to this server"


def _names(names: Iterable[str]) -> str:
    listed = sorted(names)
    shown = ", ".join(printable(name[:NAME_CHARACTERS_MAX]) for name in listed[:NAMES_MAX])
    return shown if len(listed) <= NAMES_MAX else f"{shown} and {len(listed) - NAMES_MAX} others"
