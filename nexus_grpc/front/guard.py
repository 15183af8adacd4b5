"""What a recognised caller's request still has to pass once its model is known: the caller's models, the rates."""

import threading
import time

from nexus_grpc.access.identity import ALL_MODELS, Identity
from nexus_grpc.access.rules import check_model
from nexus_grpc.front.flight import Flight
from nexus_grpc.front.routes import read_name_and_version
from nexus_grpc.ipc.errors import NexusError, PermissionDenied, RateLimited
from nexus_grpc.limits.limiter import Limiter, rate_limited, take_both

# Buckets of models and of callers have different names: "model:iris", "key:5f0c".
MODEL_PREFIX = "model:"


class Guard:
    """One per front. Any thread may call it.

    Args:
        limiter: holds the buckets.
        model_per_minute: requests that each model takes in a minute; 0 = any number.
    """

    def __init__(self, limiter: Limiter, model_per_minute: float) -> None:
        self._limiter = limiter
        self._model_per_minute = model_per_minute
        # The limiter of a single front has none of its own.
        self._lock = threading.Lock()

    def check(self, flight: Flight, model: str) -> None:
        """Raises PermissionDenied or RateLimited."""
        identity = flight.identity
        if identity is not None and identity.models != ALL_MODELS:
            check_model(identity, model)
        if self._model_per_minute or (identity is not None and identity.rate_per_minute):
            self._take(identity, model)

    def refusal(self, flight: Flight, error: NexusError) -> NexusError:
        """What a request is refused with that was refused with this: one that found no route costs its caller as much,
        and tells no more, than one that did.
        """
        identity = flight.identity
        if identity is None or flight.route is not None or isinstance(error, PermissionDenied | RateLimited):
            return error
        try:
            self.check_caller(identity)
            if identity.models != ALL_MODELS:
                check_model(identity, read_name_and_version(flight.message)[0].decode("utf-8", "replace"))
        except NexusError as other:
            return other
        return error

    def check_caller(self, identity: Identity) -> None:
        """For calls that name no model, or only tell of one. Raises RateLimited."""
        if identity.rate_per_minute:
            self._take(identity, "")

    def _take(self, identity: Identity | None, model: str) -> None:
        caller = of_model = None
        with self._lock:
            if identity is not None and identity.rate_per_minute:
                caller = self._limiter.bucket(identity.name, identity.rate_per_minute, identity.burst)
            if model and self._model_per_minute:
                of_model = self._limiter.bucket(MODEL_PREFIX + model, self._model_per_minute)
            refused = take_both(caller, of_model, time.monotonic_ns())
        if refused is None:
            return
        bucket, wait_ns = refused
        name = identity.name if identity is not None and bucket is caller else f"model '{model}'"
        raise rate_limited(name, bucket, wait_ns)
