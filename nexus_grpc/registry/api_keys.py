"""API keys in the registry: their table, their rows, and the changes that make and revoke them.

`counters` has a row `api_keys` that counts the changes: any process that looks at it sees whether another one (the
command line's) made or revoked a key. That a key was used is noted without counting: it changes no decision.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from nexus_grpc.access.keys import DIGEST_BYTES, ApiKey, is_id, scope_names, scopes_of
from nexus_grpc.ipc.errors import AlreadyExists, InvalidInput
from nexus_grpc.registry.records import Change

COUNTER = "api_keys"
KEY_COLUMNS = (
    "id", "name", "digest", "scopes", "models", "rate_per_minute", "burst", "priority", "created_at", "created_by",
    "expires_at", "last_used_at", "revoked_at",
)  # fmt: skip
KEY_TABLES = (
    # Times are seconds since 1970.
    "CREATE TABLE api_keys (id TEXT PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL, scopes TEXT NOT NULL,"
    " models TEXT NOT NULL, rate_per_minute DOUBLE PRECISION NOT NULL, burst BIGINT NOT NULL,"
    " priority INTEGER NOT NULL, created_at DOUBLE PRECISION NOT NULL, created_by TEXT NOT NULL,"
    " expires_at DOUBLE PRECISION, last_used_at DOUBLE PRECISION, revoked_at DOUBLE PRECISION)",
    # Two commands that make a key of one name at once: only one of them succeeds.
    "CREATE UNIQUE INDEX api_keys_by_name ON api_keys (name) WHERE revoked_at IS NULL",
    "CREATE TABLE counters (name TEXT PRIMARY KEY, value BIGINT NOT NULL)",
    f"INSERT INTO counters (name, value) VALUES ('{COUNTER}', 0)",
)


def key_row(values: Sequence[Any]) -> ApiKey:
    """Raises ValueError or TypeError where a value is none of ours."""
    id, name, digest, scopes, models, rate, burst, priority, *times = values
    created_at, created_by, expires_at, last_used_at, revoked_at = times
    kept = bytes.fromhex(digest)
    if not is_id(id) or len(kept) != DIGEST_BYTES:
        raise ValueError("a row of api_keys is broken: its id or its digest is none of ours")
    return ApiKey(
        id, name, kept, scopes_of(json.loads(scopes)), _texts(json.loads(models)), float(rate), int(burst),
        int(priority), float(created_at), created_by, _time(expires_at), _time(last_used_at), _time(revoked_at),
    )  # fmt: skip


def key_values(key: ApiKey) -> tuple[Any, ...]:
    return (
        key.id, key.name, key.digest.hex(), json.dumps(scope_names(key.scopes)), json.dumps(key.models),
        key.rate_per_minute, key.burst, key.priority, key.created_at, key.created_by, key.expires_at,
        key.last_used_at, key.revoked_at,
    )  # fmt: skip


def _time(value: Any) -> float | None:
    return None if value is None else float(value)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("a row of api_keys is broken: its models are no list of texts")
    return tuple(value)


def creation(keys: Sequence[ApiKey], key: ApiKey) -> Change:
    """The change that adds a key to these. Raises AlreadyExists for a name that is taken."""
    if any(each.name == key.name and each.revoked_at is None for each in keys):
        raise AlreadyExists(f"there is a key called {key.name!r}; revoke it first, or choose another name")
    detail: dict[str, Any] = {
        "key": key.id,
        "name": key.name,
        "scopes": list(scope_names(key.scopes)),
        "models": list(key.models),
        "rate_per_minute": key.rate_per_minute,
        "burst": key.burst,
        "priority": key.priority,
        "expires_at": key.expires_at,
    }
    return Change(key.created_by, "create_key", detail=detail, put_keys=(key,))


def revocation(keys: Sequence[ApiKey], wanted: str, actor: str, now: float) -> tuple[ApiKey, Change]:
    """(the revoked key, the change that makes it so). Raises InvalidInput if there is none that could be revoked.

    Args:
        wanted: an id, or the name of a key that is not revoked.
        now: seconds since 1970.
    """
    key = find_key(keys, wanted)
    if key.revoked_at is not None:
        raise InvalidInput(f"the key {key.id} ({key.name}) is revoked already")
    revoked = dataclasses.replace(key, revoked_at=now)
    return revoked, Change(actor, "revoke_key", detail={"key": key.id, "name": key.name}, put_keys=(revoked,))


def find_key(keys: Sequence[ApiKey], wanted: str) -> ApiKey:
    """By id, or by name among those that are not revoked. Raises InvalidInput."""
    for key in keys:
        if key.id == wanted or (key.name == wanted and key.revoked_at is None):
            return key
    # Not a word of it: people paste the key itself here.
    raise InvalidInput("there is no API key of that id or name; `nexus keys list` shows them")
