"""Credentials for tests of access control, and calls told by what came of them, whatever the transport."""

import contextlib
import http.client
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc

from nexus_grpc.access.keys import ApiKey, new_key
from nexus_grpc.front.hot_methods import HTTP_STATUS_KEY
from nexus_grpc.registry.open import open_registry
from nexus_grpc.registry.store import Registry
from nexus_grpc.rest.errors import HTTP_STATUS

TIMEOUT_S = 20.0
Metadata = Sequence[tuple[str, str]]


@contextlib.contextmanager
def registry_of(folder: pathlib.Path) -> Iterator[Registry]:
    """That of a server that runs, or will run, in the folder."""
    with contextlib.closing(open_registry("", folder / "data", keeps_snapshot=False)) as registry:
        yield registry


def make_key(folder: pathlib.Path, name: str, **attributes: Any) -> str:
    """A key's text. `now`: when it was made."""
    text, key = new_key(name, attributes.pop("now", time.time()), **attributes)
    with registry_of(folder) as registry:
        registry.add_key(key)
    return text


def key_named(folder: pathlib.Path, name: str) -> ApiKey:
    with registry_of(folder) as registry:
        return next(key for key in registry.list_keys() if key.name == name)


def bearer(key: str) -> Metadata:
    return (("authorization", f"Bearer {key}"),)


def wait_until(condition: Callable[[], Any], seconds: float = TIMEOUT_S) -> float:
    """How many seconds it took. Raises AssertionError when time is up."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, "it did not come true"
        time.sleep(0.01)
    return time.monotonic() - began


def status_of(channel: grpc.Channel, path: str, metadata: Metadata = (), message: bytes = b"") -> int:
    """The HTTP status that stands for what came of a call of any kind; 200 once anything was answered."""
    call = channel.stream_stream(path)(iter((message,)), timeout=TIMEOUT_S, metadata=metadata)
    try:
        next(call)
        return int(dict(call.initial_metadata()).get(HTTP_STATUS_KEY, 200))
    except StopIteration:
        return 200
    except grpc.RpcError as error:
        return HTTP_STATUS.get(error.code().value[0], 500)  # type: ignore[call-overload, no-any-return]
    finally:
        call.cancel()


def web_status(port: int, path: str, metadata: Metadata = (), message: bytes = b"") -> int:
    """As status_of(), of a gRPC-web call."""
    headers = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1", **dict(metadata)}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", path, b"\0" + len(message).to_bytes(4, "big") + message, headers)
        answer = connection.getresponse()
        if answer.status != 200:
            return answer.status
        code = answer.getheader("grpc-status")
        if code is None:
            frame = answer.read(5)
            if not frame[0] & 0x80:
                return 200
            trailers = answer.read(int.from_bytes(frame[1:], "big")).decode()
            code = next(line.partition(":")[2] for line in trailers.split("\r\n") if line.startswith("grpc-status:"))
        return HTTP_STATUS.get(int(code), 500)  # type: ignore[call-overload, no-any-return]
    finally:
        connection.close()
