"""What takes traffic is loaded, whatever is done in whatever order, also over a server's death: a running one against a
plain model of the rules."""

import contextlib
import itertools
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import grpc
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.effort import examples
from tests.harness import Server, running_server
from tests.integration.uploading import send
from tests.lifecycle import Admin, answered, code_of, put, request_for, times
from tests.plain_model import Refused, ResidencyMachine, Seen

OPTIONS = ("--fronts=1", "--workers=1", "--model-control=none", "--keep-previous-seconds=86400")
# What is refused for what it asks, not because the server fails.
REFUSALS = ("FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS")
BAD = b"no model"
# A start takes longer than all other steps together.
RESTARTS_MAX = 2


class Running:
    """One server after the other, on one folder; each example has a model of its own."""

    def __init__(self) -> None:
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.repository = self.folder / "models"
        self._numbers = itertools.count()
        self._stack = contextlib.ExitStack()
        self.server: Server | None = None
        self.admin: Admin

    def begin_model(self) -> None:
        self.name, self.restarts = f"m{next(self._numbers)}", 0
        put(self.repository, 1, name=self.name)
        if self.server is None:
            self._start()
        else:
            self.admin.reload()

    def end_model(self) -> None:
        """So that later starts have nothing to do with it."""
        with contextlib.suppress(grpc.RpcError):
            self.admin.traffic("Abort", model=self.name)
        self.admin.models("Unload", id=self.name)
        self.admin.models("Delete", id=self.name)

    def _start(self) -> None:
        self.server = self._stack.enter_context(running_server(self.folder, *OPTIONS, repository=self.repository))
        self.admin = self._stack.enter_context(Admin(self.server.address))

    def restart(self, kill: bool) -> None:
        assert self.server is not None
        self.restarts += 1
        if kill:
            self.server.process.kill()
            self.server.process.wait()
        self._stack.close()
        self._start()

    def close(self) -> None:
        self._stack.close()
        shutil.rmtree(self.folder)

    # --- operations ---

    def upload(self, version: int, store_only: bool, good: bool = True) -> None:
        with refusing():
            content = times(version) if good else BAD
            send(self.admin, content, id=self.name, version=str(version), store_only=store_only)

    def _models(self, method: str, version: int | None) -> None:
        with refusing():
            self.admin.models(method, id=self.name, version=str(version or ""))

    def load(self, version: int | None) -> None:
        self._models("Load", version)

    def unload(self, version: int | None) -> None:
        self._models("Unload", version)

    def activate(self, version: int | None) -> None:
        self._models("Activate", version)

    def delete(self, version: int) -> None:
        self._models("Delete", version)

    def rollback(self) -> None:
        with refusing():
            self.admin.models("Rollback", id=self.name)

    def _traffic(self, method: str, **fields: Any) -> None:
        with refusing():
            self.admin.traffic(method, model=self.name, **fields)

    def start(self, version: int, share: int) -> None:
        self._traffic("Setup", candidate_version=str(version), percent=share)

    def split(self, share: int) -> None:
        self._traffic("Split", percent=share)

    def ramp(self, share: int) -> None:
        self._traffic("Ramp", steps=[share, 100], every_seconds=86_400, min_requests=1)

    def promote(self) -> None:
        self._traffic("Promote")

    def abort(self) -> None:
        self._traffic("Abort")

    def put(self, version: int, good: bool) -> None:
        put(self.repository, version, None if good else BAD, name=self.name)
        self.admin.reload()

    def remove(self, version: int) -> None:
        shutil.rmtree(self.repository / self.name / str(version))
        with contextlib.suppress(OSError):
            (self.repository / self.name).rmdir()
        self.admin.reload()

    # --- what there is ---

    def seen(self) -> Seen:
        """By what the server says, and by what it answers."""
        status = self.admin.traffic("Status", model=self.name)
        arms = tuple((int(each.version), round(each.percent)) for each in status.variants)
        ready = {int(each) for each, state in self._states().items() if state == "READY"}
        for version in ready:
            self._ask(str(version), {version})
        answers = int(status.current_version) if status.current_version else None
        if answers is not None:
            self._ask("", {version for version, share in arms if share} or {answers})
        return Seen(frozenset(ready), answers, arms)

    def _states(self) -> dict[str, str]:
        """Nothing without a file."""
        listed = {each.id for each in self.admin.models("List").models}
        return self.admin.states(self.name) if self.name in listed else {}

    def _ask(self, version: str, expected: set[int]) -> None:
        answer = answered(self.admin.client.infer(request_for(version, self.name)))
        assert answer.by_values == answer.version
        assert int(answer.version) in expected


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    try:
        yield
    except grpc.RpcError as error:
        if code_of(error) not in REFUSALS:
            raise
        raise Refused from error


class RunningMachine(ResidencyMachine):
    """The server is kept from example to example."""

    def __init__(self, running: Running) -> None:
        super().__init__()
        self.real = running
        running.begin_model()

    def may_restart(self) -> bool:
        return bool(self.real.restarts < RESTARTS_MAX)

    def teardown(self) -> None:
        self.real.end_model()


def test_what_takes_traffic_is_loaded() -> None:
    with contextlib.closing(Running()) as running:
        tried = settings(
            deadline=None,
            max_examples=examples(2),
            stateful_step_count=25,
            suppress_health_check=list(HealthCheck),
        )
        run_state_machine_as_test(lambda: RunningMachine(running), settings=tried)
