"""What a recognised caller's request still has to pass once its model is known: the caller's models, the rates."""

import threading
import time

from nexus_grpc.access.identity import ALL_MODELS, Identity
from nexus_grpc.access.rules import check_model
from nexus_grpc.front.flight import Flight
from nexus_grpc.front.routes import read_name_and_version
from nexus_grpc.ipc.errors import NexusError, PermissionDenied, RateLimited, UnknownModel
from nexus_grpc.limits.buckets import Headers, rate_headers
from nexus_grpc.limits.limiter import Limiter, rate_limited, standing, take_both

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
        """Count the request, and say in its answer's headers where that leaves its caller. Raises PermissionDenied or
        RateLimited.
        """
        identity = flight.identity
        if identity is not None and identity.models != ALL_MODELS:
            check_model(identity, model)
        if self._model_per_minute or (identity is not None and identity.rate_per_minute):
            try:
                flight.headers = self._take(identity, model)
            except RateLimited as error:
                flight.headers = error.headers
                raise

    def refusal(self, flight: Flight, error: NexusError) -> NexusError:
        """What a request is refused with that was refused with this: one that found no route costs its caller as much,
        and tells no more, than one that did.
        """
        identity = flight.identity
        if identity is None or flight.route is not None or isinstance(error, PermissionDenied | RateLimited):
            return error
        counted = self.counted(flight, error)
        if counted is error and identity.models != ALL_MODELS:
            try:
                check_model(identity, read_name_and_version(flight.message)[0].decode("utf-8", "replace"))
            except PermissionDenied as denied:
                return denied
        if isinstance(counted, UnknownModel) and not identity.may_use(counted.meant):
            return counted.unhinted()
        return counted

    def counted(self, flight: Flight, error: NexusError) -> NexusError:
        """What a request is refused with that does not even name a model: it costs its caller as much as any other."""
        if flight.identity is not None:
            try:
                flight.headers = self.check_caller(flight.identity)
            except RateLimited as limited:
                flight.headers = limited.headers
                return limited
        return error

    def check_caller(self, identity: Identity) -> Headers:
        """For calls that name no model, or only tell of one: the headers of the answer. Raises RateLimited."""
        return self._take(identity, "") if identity.rate_per_minute else ()

    def standing(self, identity: Identity | None) -> Headers:
        """Where a caller is, without counting anything: for what opens before it asks."""
        if identity is None or not identity.rate_per_minute:
            return ()
        with self._lock:
            bucket = self._limiter.bucket(identity.name, identity.rate_per_minute, identity.burst)
        return rate_headers(bucket, time.monotonic_ns()) if bucket is not None else ()

    def _take(self, identity: Identity | None, model: str) -> Headers:
        caller = of_model = None
        with self._lock:
            if identity is not None and identity.rate_per_minute:
                caller = self._limiter.bucket(identity.name, identity.rate_per_minute, identity.burst)
            if model and self._model_per_minute:
                of_model = self._limiter.bucket(MODEL_PREFIX + model, self._model_per_minute)
            now_ns = time.monotonic_ns()
            refused = take_both(caller, of_model, now_ns)
        if refused is None:
            return standing(caller, of_model, now_ns)
        bucket, wait_ns = refused
        name = identity.name if identity is not None and bucket is caller else f"model '{model}'"
        raise rate_limited(name, bucket, wait_ns, now_ns)
