"""The settings of access control and limits: one part of Settings (settings.py)."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from nexus_grpc.setting_types import Number

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
        description="PEM file with the authorities whose client certificates are accepted as identities (mTLS): one is "
        "required on a gRPC port with TLS, and may be shown on a REST port with TLS (not with --envoy external).",
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
