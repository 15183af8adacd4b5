"""A model is tried in a process of its own before any worker sees it: it may crash, hang, or eat memory there.

started ──▶ start ──▶ scan ──▶ load ──▶ run ──▶ answered      (nexus_grpc.worker.trial, which says each step)
   └──────────┴─────────┴────────┴───────┴───▶ died, or killed after `trial_seconds`
"""

import asyncio
import contextlib
import dataclasses
import json
import math
import os
import signal
import sys
import weakref
from pathlib import Path
from typing import Any

from nexus_grpc.ipc.errors import InvalidInput, ModelNotServable, ModelUnavailable, NexusError
from nexus_grpc.logs import logger
from nexus_grpc.repository import ModelEntry
from nexus_grpc.settings import Settings
from nexus_grpc.supervisor.catalogue import Findings, Version
from nexus_grpc.supervisor.child import exit_text
from nexus_grpc.supervisor.environment import trial_environment
from nexus_grpc.supervisor.log_pump import LogPump

TRIAL_MODULE = "nexus_grpc.worker.trial"
# Each has a session of its own in memory, and takes processor time from nexus_grpc.worker that serve.
AT_ONCE_MAX = 2
# The answer holds a model's config and metadata: labels of 16 MiB, base64, and escapes.
ANSWER_BYTES_MAX = 64 << 20
MIB = 1 << 20

_STEPS = {
    "scan": "looking through it",
    "load": "loading it",
    "run": "loading it was fine, but its first run on a sample row",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Trial:
    """What a model is, now that it has been loaded once.

    Attributes:
        metadata, config: as a worker reports them: serialised, base64.
        inputs, outputs: nexus.v1.TensorInfo as JSON.
        findings: what workers are to know.
    """

    metadata: str
    config: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    findings: Findings


# One per event loop: asyncio's semaphores belong to the first loop that waits on them.
_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = weakref.WeakKeyDictionary()


async def try_model(path: str | Path, name: str, version: str, entry: ModelEntry, settings: Settings) -> Trial:
    """Scan, load and run a model file in a throw-away process; waits while AT_ONCE_MAX others are at it.

    Args:
        path: the file, wherever it is.
        name, version: what it is to be called, for texts.
        entry: the model's folder as it is: its configuration, labels and warm-up files are used.
        settings: `trial_seconds`, `trial_memory` and `default_max_batch_size`.

    Raises:
        InvalidInput: (NOT_ONNX) it is no ONNX model, or a damaged one.
        ModelNotServable: (MODEL_REFUSED) it is unsafe, cannot be loaded, crashes, hangs, or takes too much memory.
        ModelUnavailable: the process could not be started, or failed by itself.
    """
    loop = asyncio.get_running_loop()
    async with _turns.setdefault(loop, asyncio.Semaphore(AT_ONCE_MAX)):
        process, log = await _start()
        try:
            return await _Conversation(process, log, settings, f"version {version} of model '{name}'").run(
                _order(path, version, entry, settings)
            )
        finally:
            await _end(process)


def _order(path: str | Path, version: str, entry: ModelEntry, settings: Settings) -> bytes:
    order = Version(entry, version, os.fspath(path), 0, frozenset()).load_order(settings.default_max_batch_size)
    threads = max(1, entry.policy.session.intra_op_thread_count)
    order["supervisor_pid"] = os.getpid()
    order["limits"] = {
        "memory_bytes": settings.trial_memory,
        # Only for the case that nobody looks at the clock any more; one second for its own imports.
        "cpu_seconds": math.ceil(settings.trial_seconds) * threads + 1,
        "file_bytes": 0,
    }
    return json.dumps(order).encode()


async def _start() -> tuple[asyncio.subprocess.Process, LogPump]:
    pid = 0
    try:
        log = LogPump("trial", 0)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                TRIAL_MODULE,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log.writer,
                env=trial_environment(),
                # A group of its own, so that what it might start dies with it.
                start_new_session=True,
                limit=ANSWER_BYTES_MAX,
            )
            pid = process.pid
        finally:
            log.begin(pid)
    except OSError as error:
        raise ModelUnavailable(
            f"no process can be started to try the model in ({error.strerror or error}); try again later"
        ) from None
    return process, log


async def _end(process: asyncio.subprocess.Process) -> None:
    """Dead, and reaped, whatever it was doing; also when we are cancelled."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    await asyncio.shield(process.wait())


class _Conversation:
    """One order, the steps, one answer."""

    def __init__(self, process: asyncio.subprocess.Process, log: LogPump, settings: Settings, title: str) -> None:
        self._process = process
        self._log = log
        self._settings = settings
        self._title = title
        self._step = ""

    async def run(self, order: bytes) -> Trial:
        """Raises NexusError when there is no Trial."""
        answer: dict[str, Any] | None = None
        veto = ""
        try:
            async with asyncio.timeout(self._settings.trial_seconds):
                answer = await self._talk(order)
                if answer is None:
                    code = await self._process.wait()
                    await asyncio.to_thread(self._log.drain)
                    raise self._death(code)
                if answer.get("probing"):
                    veto = await self._veto()
        except TimeoutError:
            if answer is None:
                raise self._too_long() from None
            veto = "sample rows run together took too long"
        if answer.get("ok"):
            described = (answer["metadata"], answer["config"], answer["inputs"], answer["outputs"])
            return Trial(*described, Findings(veto, answer.get("sample_runs") is True))
        raise self._refusal(answer.get("kind", ""), answer.get("message", ""))

    async def _veto(self) -> str:
        """What the last line says. It may die of what it tries there: that is a veto, and no reason not to serve."""
        assert self._process.stdout is not None
        line = await _line(self._process.stdout)
        try:
            return str(json.loads(line)["veto"])
        except (ValueError, KeyError, TypeError):
            return "sample rows run together ended the process that tried it"

    async def _talk(self, order: bytes) -> dict[str, Any] | None:
        """The answer, or None when it ended without one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(order)
            await self._process.stdin.drain()
            self._process.stdin.close()
        while line := await _line(self._process.stdout):
            try:
                message = json.loads(line)
            except ValueError:  # cut off by its death
                return None
            if "step" not in message:
                return message  # type: ignore[no-any-return]
            self._step = message["step"]
        return None

    # --- texts ---

    def _refusal(self, kind: str, message: str) -> NexusError:
        if kind == "not_onnx":
            return InvalidInput(message, reason="NOT_ONNX")
        if kind == "memory":
            return self._no_memory()
        return _refused(f"{self._title} is refused: {message}")

    def _no_memory(self) -> ModelNotServable:
        return _refused(
            f"{self._title}: {self._doing()} takes more than {self._settings.trial_memory // MIB} MiB of memory"
            " (trial_memory)"
        )

    def _too_long(self) -> NexusError:
        seconds = self._settings.trial_seconds
        if self._step not in _STEPS:
            return ModelUnavailable(
                f"{self._title}: the process to try it in did not begin within {seconds:g} s (trial_seconds); the"
                " machine is too busy: try again later"
            )
        return _refused(f"{self._title}: {self._doing()} took longer than {seconds:g} s (trial_seconds)")

    def _death(self, code: int) -> NexusError:
        complaint = self._log.tail.decode("utf-8", "replace")
        if code == -signal.SIGXCPU:
            return _refused(f"{self._title}: {self._doing()} used up its processor time (trial_seconds)")
        if code < 0 and any(words in complaint for words in ("bad_alloc", "MemoryError", "out of memory")):
            return self._no_memory()
        if code < 0 and self._step in _STEPS:
            # Nobody else kills it: our own SIGKILL comes after the answer.
            cause = ": the machine is out of memory, perhaps" if code == -signal.SIGKILL else ""
            return _refused(f"{self._title}: {self._doing()} crashed ({exit_text(code)}{cause})")
        logger().error("the trial of a model failed by itself", model=self._title, exit=code)
        return ModelUnavailable(
            f"{self._title} could not be tried: the process for it ended with {exit_text(code)}; see the server's log"
        )

    def _doing(self) -> str:
        return _STEPS.get(self._step, "loading it")


def _refused(message: str) -> ModelNotServable:
    return ModelNotServable(message, reason="MODEL_REFUSED")


async def _line(stream: asyncio.StreamReader) -> bytes:
    """One line; empty at the end, or when it is longer than ANSWER_BYTES_MAX."""
    try:
        return await stream.readline()
    except ValueError:
        return b""
