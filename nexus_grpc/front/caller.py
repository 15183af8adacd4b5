"""Who makes the call that this thread is about, and which models that caller may name: for the cold methods.

The gate (gate.py) says who it is before a method runs. A caller whose credential is for some models only may ask about
those, gets lists without the others, and may not do what concerns them all.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from google.protobuf.message import Message

from nexus_grpc.access.identity import ALL_MODELS, Identity, Scope
from nexus_grpc.access.rules import FOR_ALL_MODELS, check_model, required
from nexus_grpc.ipc.errors import PermissionDenied, UnknownModel

# None: the server asks for no credentials.
_CALLER: ContextVar[Identity | None] = ContextVar("caller", default=None)
# Where requests name a model, first come first; and where lists have their entries.
_MODEL_FIELDS = ("model_name", "model_id", "model", "id", "name")
_LIST_FIELDS = ("models", "model_stats", "entries")


@contextlib.contextmanager
def calling(identity: Identity) -> Iterator[None]:
    """What runs inside is done for this caller."""
    token = _CALLER.set(identity)
    try:
        yield
    finally:
        _CALLER.reset(token)


def caller_identity() -> Identity | None:
    """Who calls; None when nobody asked."""
    return _CALLER.get()


def caller_name() -> str:
    """Such as "key:5f0c"; empty when nobody asked."""
    identity = _CALLER.get()
    return identity.name if identity is not None else ""


def unknown_model(shown: str, meant: str) -> UnknownModel:
    """The error for a model that is not there.

    Args:
        meant: the model that was probably meant; left out where the caller may not use it.
    """
    return hinted(UnknownModel(f"Request for unknown model: {shown} is not found", meant=meant))


def hinted(error: UnknownModel) -> UnknownModel:
    """The error as this caller may see it: without the model that was meant, if it is none of theirs."""
    identity = _CALLER.get()
    return error if identity is None or identity.may_use(error.meant) else error.unhinted()


def check_named(model: str) -> None:
    """Raises PermissionDenied if the caller may not use the model."""
    identity = _CALLER.get()
    if identity is not None:
        check_model(identity, model)


def check_request(request: Message, method: Any) -> None:
    """Raises PermissionDenied if the caller may not use the model that a request names, or must name one.

    Args:
        method: the called method's descriptor.
    """
    identity = _CALLER.get()
    if identity is None or identity.models == ALL_MODELS:
        return
    if method.containing_service.full_name in FOR_ALL_MODELS:
        raise PermissionDenied(
            f"{identity.name} may not use all models, and this concerns them all: use a credential for all",
            reason="MODEL_DENIED",
        )
    field = _first(request.DESCRIPTOR, _MODEL_FIELDS)
    if field is None:
        return
    model = getattr(request, field)
    if model:
        check_model(identity, model)
    elif _first(method.output_type, _LIST_FIELDS) is None or _is_change(method):
        raise PermissionDenied(f"{identity.name} may not use all models: name one in `{field}`", reason="MODEL_DENIED")


def without_hidden(answer: Message) -> Message:
    """The answer, its list without the models that the caller may not use."""
    identity = _CALLER.get()
    if identity is None or identity.models == ALL_MODELS:
        return answer
    field = _first(answer.DESCRIPTOR, _LIST_FIELDS)
    if field is None or not answer.DESCRIPTOR.fields_by_name[field].is_repeated:
        return answer
    entries = getattr(answer, field)
    name = _first(answer.DESCRIPTOR.fields_by_name[field].message_type, ("model", "id", "name"))
    kept = [entry for entry in entries if name is not None and identity.may_use(getattr(entry, name))]
    del entries[:]
    entries.extend(kept)
    return answer


def _is_change(method: Any) -> bool:
    """A reload of all models answers with a list, too."""
    return required(f"/{method.containing_service.full_name}/{method.name}") is Scope.ADMIN


def _first(descriptor: Any, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in descriptor.fields_by_name), None)
