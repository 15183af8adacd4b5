"""Why an uploaded version does not answer the requests that name none, and what to do that it does."""

from nexus_grpc.supervisor.model_state import ModelState
from nexus_grpc.traffic import residency


def note(state: ModelState, number: int, serving: int | None) -> str:
    """For people; empty when it does answer them.

    Args:
        number: the version that was uploaded.
        serving: the one that answers.
    """
    if serving == number:
        return ""
    command = f"nexus models activate {state.name} {number}"
    route = f'POST /v1/models/{state.name}/activate {{"version": "{number}"}}'
    why = _why(state, number, serving)
    return f"requests that name no version do not get it: {why}; to change that: {command}, or {route}"


def _why(state: ModelState, number: int, serving: int | None) -> str:
    row = state.rows.get(number)
    if row is not None and row.wanted == residency.UNLOADED:
        return "it is stored only, and not loaded"
    if state.traffic.experiment is not None:
        return f"an experiment runs beside version {serving}, and activating a version ends it"
    if state.traffic.primary is not None:
        return f"version {state.traffic.primary} was chosen to answer them (activate, rollback or promote)"
    if serving is not None and serving > number:
        return f"version {serving} is newer, and answers"
    if number not in state.by_policy:
        return "the version policy of config.pbtxt does not select it"
    return f"version {serving or 'none'} answers"
