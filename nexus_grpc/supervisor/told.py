"""What the log tells of changes: what was done to which model, and by whom; and which version answers from then on."""

from typing import Any

from nexus_grpc import logs
from nexus_grpc.registry.records import Change

# At its first start a server finds everything; that a version found later is loaded is told by itself.
_UNTOLD = frozenset({"found"})


def changed(change: Change) -> None:
    """One line of the audit log, now that it is written."""
    if not change.audited or change.action in _UNTOLD:
        return
    facts: dict[str, Any] = {"version": change.version, "detail": dict(change.detail)}
    present = {name: value for name, value in facts.items() if value}
    logs.logger().info("model changed", action=change.action, model=change.model, actor=change.actor, **present)


def answers(model: str, before: int | None, now: int | None) -> None:
    """Requests that name no version get another one, for whatever reason."""
    if now is None:
        logs.logger().warning("no version answers", model=model, before=str(before))
    else:
        logs.logger().info("another version answers", model=model, version=str(now), before=str(before or ""))
