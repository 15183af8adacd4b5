"""Counts the REST requests that cold methods answer, with their status and time: of the hot ones the dispatcher knows.

Outside of all other interceptors: what the gate refuses is counted, too.
"""

import time
from collections.abc import Callable
from typing import Any

import grpc

from nexus_grpc.access.rules import TWIN_PREFIX
from nexus_grpc.front.guarded import wrapped
from nexus_grpc.front.hot_methods import HTTP_STATUS_KEY, PATHS
from nexus_grpc.ipc.http_stats import HOT_ENDPOINTS
from nexus_grpc.ipc.stats import HTTP_ENDPOINTS_MAX
from nexus_grpc.rest.http_rules import http_methods
from nexus_grpc.rest.twin import path_of

# (endpoint, HTTP status, nanoseconds)
Ended = Callable[[int, int, int], None]
_HOT = frozenset(PATHS.values())
ENDPOINTS = {path_of(method.name): HOT_ENDPOINTS + number for number, method in enumerate(http_methods())}
assert max(ENDPOINTS.values()) < HTTP_ENDPOINTS_MAX


class _Watched:
    """A call's context that remembers the HTTP status which is sent. All else is the context's own."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context
        self.status = 200

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def send_initial_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self.status = next((int(value) for key, value in metadata if key == HTTP_STATUS_KEY), 200)
        self._context.send_initial_metadata(metadata)


class HttpCounts(grpc.ServerInterceptor):
    """Args:
    ended: called by the thread that answered.
    """

    def __init__(self, ended: Ended) -> None:
        self._ended = ended

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """grpc's hook."""
        handler = continuation(handler_call_details)
        path = handler_call_details.method
        if handler is None or not path.startswith(TWIN_PREFIX) or path in _HOT:
            return handler
        return wrapped(handler, self._call, ENDPOINTS[path])

    def _call(self, behaviour: Callable[..., Any], endpoint: int, request: Any, context: grpc.ServicerContext) -> Any:
        watched, begun_ns, status = _Watched(context), time.monotonic_ns(), 500
        try:
            answer = behaviour(request, watched)
            status = watched.status
            return answer
        finally:
            self._ended(endpoint, status, time.monotonic_ns() - begun_ns)
