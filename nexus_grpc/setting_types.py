"""The kinds of value that a setting may have: how each is written, checked and refused."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import NoDecode

from nexus_grpc.cpus import parse_cpu_list

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_BYTES = re.compile(r"(\d{1,15})\s*(KiB|MiB|GiB)?", re.IGNORECASE | re.ASCII)
# scheme://host[:port], as browsers send it (RFC 6454): no path, no slash at the end.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@*]+", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "kib": KIB, "mib": MIB, "gib": GIB}


def _parse_bytes(value: object) -> object:
    """Lets a size be written as 64MiB; anything else is left to the field's own type."""
    if isinstance(value, str) and (match := _BYTES.fullmatch(value.strip())):
        return int(match[1]) * _UNITS[(match[2] or "").lower()]
    return value


def _refuse_bool(value: object) -> object:
    # `workers = true` in TOML would otherwise be one worker.
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    return value


def _check_power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError("expected a power of two, such as 4194304 (4 MiB)")
    return value


def _check_cpus(value: str) -> str:
    parse_cpu_list(value)
    return value


def _split(value: object) -> object:
    """Lets a list be written as a,b; anything else is left to the field's own type."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is no web origin; expected one such as https://a.example or *")
    return origins


Port = Annotated[int, BeforeValidator(_refuse_bool), Field(ge=0, le=65535)]
Count = Annotated[int, BeforeValidator(_refuse_bool)]
Bytes = Annotated[int, BeforeValidator(_refuse_bool), BeforeValidator(_parse_bytes)]
Seconds = Annotated[float, BeforeValidator(_refuse_bool), Field(ge=0.1, le=86_400, allow_inf_nan=False)]
Number = Annotated[float, BeforeValidator(_refuse_bool)]
PowerOfTwoBytes = Annotated[Bytes, AfterValidator(_check_power_of_two)]
CpuList = Annotated[str, AfterValidator(_check_cpus)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Origins = Annotated[Names, AfterValidator(_check_origins)]
