"""How clients connect: addresses, TLS, limits, metadata. Shared by both clients."""

import dataclasses
import itertools
import math
import os
import pathlib
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import grpc

from nexus_grpc.client.addresses import why_not
from nexus_grpc.client.casting import KnownInputs
from nexus_grpc.client.errors import REQUEST_ID_KEY, closed, invalid
from nexus_grpc.client.retry import DEFAULT_RETRY, Attempts, Retry
from nexus_grpc.client.retry_budget import RetryBudget

Channel = TypeVar("Channel")
# The server's own default for both directions.
MAX_MESSAGE_BYTES = 64 << 20
# A busy server may take a moment over its first frame; a host that does not answer at all is given up after this.
CONNECT_MS = 5_000
Pem = bytes | str | os.PathLike[str]
# Sent with every attempt: fixed, or asked for each time, as tokens expire.
MetadataSource = Mapping[str, str] | Callable[[], Mapping[str, str]]
API_KEY_KEY = "x-api-key"
# Ids that the server takes as they are (front/hot_methods.py); it replaces any other.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}").fullmatch


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS, and mutual TLS with a certificate of one's own. PEM: the text as bytes, or a path.

    Attributes:
        root_certificates: the authorities that are trusted; None: the system's.
        certificate: the client's certificate chain, together with `private_key`.
        private_key: its key.
        server_name: the name that the server's certificate must have, where it is not the address's.
    """

    root_certificates: Pem | None = None
    certificate: Pem | None = None
    private_key: Pem | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key go together")

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises OSError when a file can't be read."""
        return grpc.ssl_channel_credentials(
            root_certificates=_pem(self.root_certificates),
            private_key=_pem(self.private_key),
            certificate_chain=_pem(self.certificate),
        )


def _pem(source: Pem | None) -> bytes | None:
    return source if source is None or isinstance(source, bytes) else pathlib.Path(source).read_bytes()


class ClientBase(Generic[Channel]):
    """What both clients are made with.

    Args:
        address: host:port of the gRPC port, or anything else that grpc resolves (`unix:/path`, `dns:///name:port`).
        timeout_s: seconds for a call with all its retries, where the call says nothing else; `math.inf` for no limit.
            Streams have none unless they are given one.
        retry: what is tried again, see Retry.
        tls: None for plain text.
        api_key: sent with every call as x-api-key: what `nexus keys create` printed. Over plain text anybody on the way
            can read it: use `tls` beyond this machine.
        metadata: sent with every call, such as `{"authorization": "Bearer …"}`; a function is asked for every attempt.
        max_message_bytes: largest message, either way.
        keepalive_s: seconds of silence within a call after which the connection is probed.
        channels: connections, used in turn. More than one helps when one connection is the bottleneck, or to reach
            several of the server's fronts.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 30.0,
        retry: Retry = DEFAULT_RETRY,
        tls: Tls | None = None,
        api_key: str = "",
        metadata: MetadataSource | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        keepalive_s: float = 60.0,
        channels: int = 1,
    ) -> None:
        if channels < 1 or max_message_bytes < 1 or not keepalive_s > 0 or not timeout_s > 0:
            raise ValueError("channels, max_message_bytes, keepalive_s and timeout_s must be positive")
        if why_not(address):
            raise ValueError(why_not(address))
        if not _is_sendable(api_key):
            # Not a word of it: errors end in logs.
            raise ValueError("api_key has characters that no API key has")
        self.address = address
        self._timeout_s = timeout_s
        self._retry = retry
        self._retry_budget = RetryBudget(retry.budget_tokens)
        self._credentials = tls.credentials() if tls is not None else None
        self._own_metadata = ((API_KEY_KEY, api_key),) if api_key else ()
        self._metadata = metadata if metadata is not None else {}
        self._channel_count = channels
        self._options = channel_options(address, tls, max_message_bytes, keepalive_s, own_connection=channels > 1)
        self._channels: list[Channel] = []
        self._turns = itertools.count()
        self._opening = threading.Lock()
        self._closed = False
        self._known_inputs = KnownInputs()

    def _open_channel(self) -> Channel:
        raise NotImplementedError

    def _next_channel(self) -> Channel:
        """They are opened with the first call: grpc.aio's belong to the event loop that runs then.

        Raises NexusClientError when the client is closed.
        """
        with self._opening:
            if self._closed:
                raise closed()
            if not self._channels:
                self._channels = [self._open_channel() for _ in range(self._channel_count)]
            return self._channels[next(self._turns) % self._channel_count]

    def _take_channels(self) -> list[Channel]:
        """Closes the client; returns the channels to be closed: none the second time."""
        with self._opening:
            self._closed = True
            channels, self._channels = self._channels, []
        return channels

    def _begin(self, timeout_s: float | None, retry: Retry | None = None) -> Attempts:
        """Raises InvalidInput when the timeout is not positive."""
        seconds = self._timeout_s if timeout_s is None else timeout_s
        return Attempts(retry or self._retry, seconds, self._retry_budget)

    def _call_metadata(self, request_id: str) -> tuple[tuple[str, str | bytes], ...]:
        """Raises InvalidInput for a request id that the server would replace."""
        given = self._metadata() if callable(self._metadata) else self._metadata
        pairs = (*self._own_metadata, *((key.lower(), value) for key, value in given.items()))
        if not request_id:
            return pairs
        if not _REQUEST_ID(request_id):
            raise invalid("request_id: expected 1 to 128 characters of A-Z a-z 0-9 . _ : / + = @ -")
        return (*pairs, (REQUEST_ID_KEY, request_id))


def _is_sendable(api_key: str) -> bool:
    """Whether it can be a header's value as it is; "" can."""
    return not api_key or (api_key.isascii() and api_key.isprintable() and " " not in api_key)


def channel_options(
    address: str, tls: Tls | None, max_message_bytes: int, keepalive_s: float, own_connection: bool
) -> list[tuple[str, Any]]:
    """grpc's channel arguments. Source: grpc/impl/channel_arg_names.h"""
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # Retries are ours (retry.py): grpc's transparent ones know nothing of the back-off.
        ("grpc.enable_retries", 0),
        # By default a connection that failed is not tried again for a second, longer than our first waits.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # In spite of its name: how long a connection may take to be made, until the server's first frame.
        ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
    ]
    if keepalive_s != math.inf:
        options += [("grpc.keepalive_time_ms", round(keepalive_s * 1000)), ("grpc.keepalive_timeout_ms", 20_000)]
    if own_connection:
        # Channels to one address share a connection otherwise.
        options.append(("grpc.use_local_subchannel_pool", 1))
    if tls is not None and tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    if address.startswith(("127.", "localhost:", "[::1]")):
        options.append(("grpc.enable_http_proxy", 0))
    return options
