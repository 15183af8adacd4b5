"""The server's log: whatever libraries say, each line is one event, in the form that was asked for."""

import contextlib
import json
import os
import pathlib
import pty
import signal
import subprocess
from typing import Any

import grpc
import numpy as np
import pytest

from tests.harness import NEXUS, Server, copy_models, free_port, running_server
from tests.integration import graphs, rest, uploading
from tests.integration.client import Client, iris_request, raw_request
from tests.lifecycle import wait_for

FIXED = {"timestamp", "level", "event", "role", "index", "pid"}
# grpc's core says what it does, and Python what it dies of.
TALKATIVE = {"GRPC_VERBOSITY": "debug", "GRPC_TRACE": "http_keepalive", "PYTHONFAULTHANDLER": "1", "NO_COLOR": ""}
# The start-up table is for people, and goes to standard output; what is left is the log.
LOG_ALONE = ["sh", "-c", 'exec "$@" >/dev/null', "sh"]


def make_libraries_speak(server: Server) -> None:
    """A model that fails in ONNX Runtime, in a worker; a crash; requests, good and bad."""
    with contextlib.closing(Client(server.address)) as client:
        client.infer(iris_request())
        with pytest.raises(grpc.RpcError):
            client.infer(raw_request("fragile", {"x": np.full((1, 2), 3, np.float32)}, model_version="2"))
    rest.assert_serves(server.rest_port)
    assert rest.get(server.rest_port, "/nowhere").status == 404
    content = b"no model"
    answer = rest.post(
        server.rest_port, uploading.PATH, uploading.form_of(content, id="a"), Content_Type=uploading.FORM
    )
    assert answer.status == 400
    [worker] = server.children("worker")
    worker.send_signal(signal.SIGSEGV)
    wait_for(lambda: "Segmentation fault" in server.log_text() and "worker died" in server.log_text())


def repository_of(folder: pathlib.Path) -> pathlib.Path:
    repository = copy_models(folder / "models", "iris")
    graphs.fragile(repository)
    (repository / "fragile" / "config.pbtxt").unlink()
    return repository


def events_of(server: Server) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log_text().splitlines()]


def test_every_line_is_an_event(tmp_path: pathlib.Path) -> None:
    with running_server(
        tmp_path,
        "--workers=1",
        "--log-sample=1",
        "--log-level=debug",
        repository=repository_of(tmp_path),
        rest=True,
        prefix=LOG_ALONE,
        environment=TALKATIVE,
    ) as server:
        make_libraries_speak(server)
        server.stop()
    events = events_of(server)
    assert all(event.keys() >= FIXED for event in events)
    assert all(type(event["index"]) is type(event["pid"]) is int and event["pid"] > 1 for event in events)
    libraries = {(event["role"], event["logger"]): event for event in events if "logger" in event}
    assert libraries.keys() >= {("worker", "onnxruntime"), ("worker", "python"), ("front", "grpc")}
    failed = libraries["worker", "onnxruntime"]
    assert failed["level"] == "error"
    assert failed["event"].startswith("Non-zero status code")
    assert ".cc:" in failed["source"]
    # The one that was sent, and no other on the way out.
    [crash] = [event for event in events if (event["role"], event.get("logger")) == ("worker", "python")]
    assert (crash["level"], crash["event"]) == ("error", "Fatal Python error: Segmentation fault")
    # Where it was: the loop itself may be compiled, and then has no line.
    assert "most recent call first" in crash["exception"]
    assert "nexus_grpc" in crash["exception"]
    [died] = [event for event in events if event["event"] == "worker died"]
    assert died["child_pid"] == crash["pid"]
    assert {event["role"] for event in events} >= {"supervisor", "front", "worker", "envoy"}


def test_for_people_it_is_text_without_escapes(tmp_path: pathlib.Path) -> None:
    with running_server(
        tmp_path,
        "--workers=1",
        "--log-sample=1",
        "--log-format=console",
        repository=repository_of(tmp_path),
        rest=True,
        prefix=LOG_ALONE,
        environment=TALKATIVE,
    ) as server:
        make_libraries_speak(server)
        server.stop()
    text = server.log_text()
    assert "\x1b" not in text
    assert "{" not in "".join(line[0] for line in text.splitlines() if line)
    for words in ("Non-zero status code", "[onnxruntime]", "[grpc]", "http_request", "role=envoy"):
        assert words in text
    assert "[error    ] Fatal Python error: Segmentation fault" in text


def test_closed_standard_streams_are_put_up_with(tmp_path: pathlib.Path) -> None:
    closed = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh"]
    repository = copy_models(tmp_path / "models", "iris")
    with running_server(tmp_path, "--workers=1", repository=repository, rest=True, prefix=closed) as server:
        rest.assert_serves(server.rest_port)
        assert server.stop() == 0
    assert server.log_text() == ""
    for path in (tmp_path / "data").iterdir():
        assert b'"event"' not in path.read_bytes()


def on_a_terminal(folder: pathlib.Path, *options: str) -> str:
    """What a server with a terminal for standard error shows there from its start to its end."""
    repository = copy_models(folder / "models", "iris")
    ports = [f"--grpc-port={free_port()}", "--rest-port=0", "--metrics-port=0"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NEXUS_")}
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [*NEXUS, "serve", f"--model-repository={repository}", "--workers=1", *ports, *options],
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        cwd=folder,
        env={**environment, "GRPC_VERBOSITY": "debug"},
    )
    os.close(terminal)
    shown = b""
    try:
        with contextlib.suppress(OSError):  # nobody has the terminal any more
            while received := os.read(screen, 1 << 16):
                shown += received
                if b"serving" in received:
                    process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(screen)
    return shown.decode()


def test_on_a_terminal_it_is_text(tmp_path: pathlib.Path) -> None:
    lines = on_a_terminal(tmp_path).splitlines()
    assert any("[" in line and "serving" in line and "\x1b[" in line for line in lines)
    # A front's, which has a pipe for standard error, and a library's in it look the same.
    assert any("DEBUG is not suitable" in line and "\x1b[" in line for line in lines)
    assert not any(line.startswith("{") for line in lines)


def test_on_a_terminal_it_is_json_if_that_is_asked_for(tmp_path: pathlib.Path) -> None:
    lines = on_a_terminal(tmp_path, "--log-format=json").splitlines()
    assert all(json.loads(line).keys() >= FIXED for line in lines)
    assert any("serving" in line for line in lines)
