"""The settings of overload and failing models: one part of Settings (settings.py)."""

from typing import Annotated

from pydantic import BaseModel, Field

from nexus_grpc.setting_types import Count, Number, Seconds

Milliseconds = Annotated[Number, Field(ge=0, le=3_600_000, allow_inf_nan=False)]


class OverloadSettings(BaseModel):
    """What is refused when more is asked than can be served, or when a model fails."""

    queue_target_ms: Milliseconds = Field(
        5000.0,
        description="Queueing time of a worker that is put up with, in milliseconds; when it stands above, requests of "
        "the lowest priority are refused first, and requests whose deadline is nearer at once. 0 = never.",
    )
    model_max_in_flight: Count = Field(
        0,
        ge=0,
        le=1 << 20,
        description="Requests that one model may have in flight, over all its versions; config.pbtxt's parameter "
        "max_in_flight says otherwise for a model; 0 = any number.",
    )
    circuit_failures: Annotated[Number, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        0.6,
        description="Share of a model version's requests within ten seconds that must fail (by the model's or the "
        "worker's fault) before it is left alone for a while; 0 = never.",
    )
    circuit_requests: Count = Field(
        3, ge=1, le=1 << 20, description="Requests that must have ended before a model version may be left alone."
    )
    circuit_open_seconds: Seconds = Field(
        30.0, description="How long a failing model version is left alone before it is tried again, in seconds."
    )
    circuit_probes: Count = Field(
        3, ge=1, le=1024, description="Requests that must go well then before all are let through again."
    )
