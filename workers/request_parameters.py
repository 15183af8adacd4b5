"""The parameters that a request of the Open Inference Protocol may have, by gRPC and by REST: one reading of them.

Honoured: timeout (µs), priority (where the model has priority levels), nexus_timing, and Triton's
triton_enable_empty_final_response. What asks for something that is not done here is refused by name; what is the
caller's own is nobody's business. 0, an empty text and null stand for nothing.

Source: Triton's docs/protocol (extension_schedule_policy.md, extension_sequence.md, extension_parameters.md).
"""

from collections.abc import Mapping
from typing import Any

from nexus_grpc.ipc.errors import InvalidInput

from .model import Model

TIMING_PARAMETER = "nexus_timing"
FINAL_PARAMETER = "triton_enable_empty_final_response"
FINAL_RESPONSE = "triton_final_response"
_TRITON_PREFIX = "triton_"
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
_SHARED_MEMORY = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


class Asked:
    """What the parameters ask for. `priority` 0 = the model has no levels."""

    __slots__ = ("final", "priority", "timeout_ns", "timing")

    def __init__(self, timing: bool, timeout_ns: int, priority: int, final: bool) -> None:
        self.timing = timing
        self.timeout_ns = timeout_ns
        self.priority = priority
        self.final = final


def read_parameters(model: Model, given: Mapping[str, Any]) -> Asked:
    """Raises InvalidInput on a parameter that we would have to disobey."""
    for name in given:
        if name.startswith(_TRITON_PREFIX) and name != FINAL_PARAMETER:
            raise InvalidInput(f"parameter '{name}' is not supported", field=name)
    for name in _SEQUENCE:
        if given.get(name):
            raise InvalidInput(
                f"parameter '{name}': model '{model.name}' has no sequence batching; send each request by itself",
                field=name,
            )
    timing, final = given.get(TIMING_PARAMETER) is True, given.get(FINAL_PARAMETER) is True
    timeout_us = max(0, _whole(given, "timeout", " of microseconds"))
    return Asked(timing, timeout_us * 1000, _priority(model, given), final)


def _priority(model: Model, given: Mapping[str, Any]) -> int:
    """The level of the request's queue: 1 goes first. One that the model has not is the default one, as in Triton."""
    asked, levels = _whole(given, "priority", ""), model.queue.priority_levels
    if asked < 0:
        raise InvalidInput("parameter 'priority' must not be negative", field="priority")
    if asked and not levels:
        raise InvalidInput(
            f"parameter 'priority': model '{model.name}' has no priority levels (dynamic_batching.priority_levels in"
            " config.pbtxt); leave it out, or say how urgent the call is by the header x-nexus-priority",
            field="priority",
        )
    return asked if 0 < asked <= levels else model.queue.default_priority


def _whole(given: Mapping[str, Any], name: str, unit: str) -> int:
    value = given.get(name)
    if value is None:
        return 0
    if type(value) is not int:
        raise InvalidInput(f"parameter '{name}' must be a whole number{unit}", field=name)
    return value


def refuse_shared_memory(parameters: Mapping[str, Any]) -> None:
    """Of an input or output. Raises InvalidInput."""
    for name in _SHARED_MEMORY:
        if parameters.get(name):
            raise InvalidInput(f"parameter '{name}': shared memory of clients is not offered here", field=name)
