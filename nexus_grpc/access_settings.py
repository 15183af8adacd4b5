"""The settings of access control and limits: one part of Settings (settings.py)."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from nexus_grpc.setting_types import Count, Number, Seconds

Rate = Annotated[Number, Field(ge=0, le=1e9, allow_inf_nan=False)]


class AccessSettings(BaseModel):
    """Who may call, and how much."""

    auth: Literal["off", "optional", "required"] = Field(
        "off",
        description="Whether callers need a credential: off asks for none, optional lets anonymous callers predict and "
        "read, required refuses them.",
    )
    insecure_allow_anonymous: bool = Field(
        False, description="Listen on an address that other machines can reach although callers need no credential."
    )
    jwt_issuers: str = Field(
        "", max_length=4096, description="TOML file with the issuers of tokens (JWT) that are accepted; none if empty."
    )
    grpc_tls_certificate: str = Field(
        "",
        max_length=4096,
        description="PEM file with the gRPC port's certificate chain; no TLS if empty. Read again when it changes.",
    )
    grpc_tls_key: str = Field("", max_length=4096, description="PEM file with the key of --grpc-tls-certificate.")
    tls_client_ca: str = Field(
        "",
        max_length=4096,
        description="PEM file with the authorities whose client certificates are accepted as identities (mTLS).",
    )
    anonymous_per_minute: Rate = Field(
        100.0, description="With --auth optional: requests that each anonymous address may make in a minute; 0 = any."
    )
    model_per_minute: Rate = Field(
        0.0, description="Requests that each model takes in a minute, whoever makes them; 0 = any."
    )
    redis_url: str = Field(
        "",
        max_length=4096,
        repr=False,
        description="Redis that shares rate limits between servers: redis://:password@host:6379/0; none if empty.",
    )
    queue_target_ms: Number = Field(
        100.0,
        ge=0,
        le=60_000,
        description="Requests are shed, lowest priority first, while the queue's delay stays above this; 0 = never.",
    )
    model_max_in_flight: Count = Field(
        0, ge=0, le=1 << 20, description="Requests that one front holds for one model version at a time; 0 = any."
    )
    circuit_seconds: Seconds = Field(
        30.0, description="How long a model version that keeps failing is left alone before it is probed, in seconds."
    )
    circuit_failures: Number = Field(
        0.6, ge=0, le=1, description="Share of failures that opens a model version's circuit; 0 = never."
    )
    circuit_requests: Count = Field(
        3, ge=1, le=1_000_000, description="Requests that must have ended before a circuit may open."
    )
    circuit_probes: Count = Field(3, ge=1, le=1000, description="Successful probes that close a circuit again.")
