"""Models tried in a process of their own: what they are, why they are refused, and that nothing of it stays."""

import asyncio
import base64
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop
from onnx import ModelProto

from nexus_grpc.ipc.errors import InvalidInput, ModelNotServable, ModelUnavailable, NexusError
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from nexus_grpc.pb.inference import model_config_pb2 as config_pb
from nexus_grpc.repository import ModelEntry, scan_model
from nexus_grpc.settings import Settings, load_settings
from nexus_grpc.supervisor import trial as supervisor_trial
from nexus_grpc.supervisor.trial import AT_ONCE_MAX, Trial, try_model
from tests.harness import MODELS, copy_models
from tests.integration import bad_models as bad
from tests.unit.support import ROOT, open_descriptors

WAIT_SECONDS = 60.0


def settings_of(**changes: Any) -> Settings:
    return load_settings({"trial_seconds": 60, "trial_memory": "1GiB", **changes})


def run(awaitable: Coroutine[Any, Any, Any]) -> Any:
    return uvloop.run(awaitable)  # as the supervisor does


@pytest.fixture
def staged(tmp_path: Path) -> Callable[[ModelProto | bytes], Path]:
    def write(model: ModelProto | bytes) -> Path:
        path = tmp_path / "staged-file"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return path

    return write


def attempt(path: Path, entry: ModelEntry | None = None, **changes: Any) -> Trial:
    entry = entry or ModelEntry("shop", path.parent)
    trial: Trial = run(try_model(path, entry.name, "3", entry, settings_of(**changes)))
    return trial


def refusal(path: Path, entry: ModelEntry | None = None, **changes: Any) -> NexusError:
    with pytest.raises(NexusError) as caught:
        attempt(path, entry, **changes)
    return caught.value


def trials_of(process: psutil.Process) -> list[psutil.Process]:
    """Trial processes among its children that have said who they are (and so have set themselves up)."""
    found = []
    for child in process.children():
        try:
            if child.cmdline()[:1] == ["nexus: trial 0"]:
                found.append(child)
        except psutil.Error:
            continue
    return found


def confined(process: psutil.Process) -> bool:
    try:
        return process.rlimit(psutil.RLIMIT_NOFILE)[0] == 64
    except psutil.Error:
        return False


async def trial_process(parent: psutil.Process) -> psutil.Process:
    """The one trial process, once its limits are set."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not (found := [child for child in trials_of(parent) if confined(child)]):
            await asyncio.sleep(0.01)
    return found[0]


# --- what passes ---


@pytest.mark.parametrize("name", sorted(path.name for path in MODELS.iterdir() if path.is_dir()))
def test_the_demo_models_pass(name: str) -> None:
    entry = scan_model(MODELS, name)
    assert entry is not None
    trial = attempt(entry.versions[-1].path, entry)
    metadata = pb.ModelMetadataResponse.FromString(base64.b64decode(trial.metadata))
    config = config_pb.ModelConfig.FromString(base64.b64decode(trial.config))
    assert (metadata.name, config.name, config.backend) == (name, name, "onnxruntime")
    for described, tensors in ((trial.inputs, metadata.inputs), (trial.outputs, metadata.outputs)):
        assert [(item["name"], item["datatype"], item["shape"]) for item in described] == [
            (tensor.name, tensor.datatype, list(tensor.shape)) for tensor in tensors
        ]


def test_iris_is_described_as_clients_see_it() -> None:
    entry = scan_model(MODELS, "iris")
    assert entry is not None
    trial = attempt(entry.versions[-1].path, entry)
    assert trial.inputs == [{"name": "X", "dtype": 1, "shape": [-1, 4], "datatype": "FP32"}]
    assert trial.outputs == [
        {"name": "label", "dtype": 7, "shape": [-1], "datatype": "INT64"},
        {"name": "probabilities", "dtype": 1, "shape": [-1, 3], "datatype": "FP32"},
    ]


def test_an_input_too_large_for_a_sample_is_not_run(staged: Callable[[ModelProto], Path]) -> None:
    model = bad.good()
    model.graph.input[0].CopyFrom(bad.floats("x", [5000, 5000]))
    [described] = attempt(staged(model), trial_memory="256MiB").inputs
    assert described["shape"] == [5000, 5000]


def test_the_models_folder_counts_and_its_paths_may_be_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_models(tmp_path, "iris") / "iris"
    (folder / "warmup").mkdir()
    (folder / "warmup" / "row").write_bytes(b"\0" * 16)
    warmup = (
        'model_warmup { name: "w" inputs { key: "X" value { data_type: TYPE_FP32 dims: 4 input_data_file: "row" } } }'
    )
    (folder / "config.pbtxt").write_text("max_batch_size: 7 " + warmup)
    monkeypatch.chdir(tmp_path)
    entry = scan_model(Path(), "iris")
    assert entry is not None
    assert entry.error is None
    trial = attempt(entry.versions[0].path, entry)
    assert config_pb.ModelConfig.FromString(base64.b64decode(trial.config)).max_batch_size == 7
    (folder / "warmup" / "row").write_bytes(b"\0" * 15)
    error = refusal(entry.versions[0].path, entry)
    assert isinstance(error, ModelNotServable)
    assert "warm-up file 'row' of model 'iris' has 15 bytes, expected 16" in error.message


# --- what does not ---


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (b"this is no model", "not an ONNX model"),
        (bad.good().SerializeToString()[:-30], "is truncated"),
    ],
    ids=["empty", "garbage", "truncated"],
)
def test_what_is_no_model(content: bytes, words: str, staged: Callable[[bytes], Path]) -> None:
    error = refusal(staged(content))
    assert isinstance(error, InvalidInput)
    assert error.reason == "NOT_ONNX"
    assert words in error.message


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (bad.custom_op, "is a custom operator of domain 'com.example'"),
        (bad.future_opset, "uses opset 999"),
        (bad.external_data, "has its data in another file"),
        (bad.dims_bomb, "4398046511104 bytes, and holds 16"),
        (bad.crashes_the_loader, "loading it crashed (signal SIGSEGV)"),
        (lambda: bad.eats_memory(1 << 40), "takes more than 1024 MiB of memory (trial_memory)"),
        (lambda: bad.eats_memory(1 << 30), "takes more than 1024 MiB of memory (trial_memory)"),
        (lambda: bad.model_of([bad.helper.make_node("NoSuchOp", ["x"], ["y"])]), "NoSuchOp"),
    ],
    ids=["custom", "opset", "external", "dims", "segfault", "4-TiB", "4-GiB", "unknown-op"],
)
def test_what_is_refused(build: Callable[[], ModelProto], words: str, staged: Callable[[ModelProto], Path]) -> None:
    path = staged(build())
    error = refusal(path)
    assert isinstance(error, ModelNotServable)
    assert error.reason == "MODEL_REFUSED"
    assert words in error.message
    assert error.message.startswith("version 3 of model 'shop'")
    assert str(path.parent) not in error.message


def test_a_model_that_needs_less_memory_than_it_may_have_passes(staged: Callable[[ModelProto], Path]) -> None:
    assert attempt(staged(bad.eats_memory(1 << 24))).outputs[0]["name"] == "y"


@pytest.mark.parametrize("batchable", [True, False])
def test_a_model_that_never_ends_is_stopped(batchable: bool, staged: Callable[[ModelProto], Path]) -> None:
    began = time.monotonic()
    error = refusal(staged(bad.never_ends(batchable=batchable)), trial_seconds=6)
    assert isinstance(error, ModelNotServable)
    assert "its first run on a sample row took longer than 6 s (trial_seconds)" in error.message
    assert 6 <= time.monotonic() - began < 30
    assert trials_of(psutil.Process()) == []


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    error = refusal(tmp_path / "absent")
    assert "a file cannot be read: No such file or directory" in error.message


# --- the process ---


def test_the_process_is_confined(staged: Callable[[ModelProto], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXUS_API_KEY", "secret")
    monkeypatch.setenv("ORT_LOAD_CONFIG_FROM_MODEL", "1")
    path = staged(bad.never_ends(batchable=False))

    async def look() -> None:
        task = asyncio.create_task(try_model(path, "shop", "3", ModelEntry("shop", path.parent), settings_of()))
        process = await trial_process(psutil.Process())
        assert process.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
        assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert process.rlimit(psutil.RLIMIT_CPU) == (61, 62)
        assert 1 << 30 < process.rlimit(psutil.RLIMIT_AS)[0] < 4 << 30
        assert process.nice() == min(10 + os.nice(0), 19)
        assert os.getpgid(process.pid) == process.pid
        assert not [name for name in process.environ() if name.startswith(("NEXUS_", "ORT_"))]
        assert os.readlink(f"/proc/{process.pid}/cwd").endswith(" (deleted)")
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not psutil.pid_exists(process.pid)

    run(look())
    assert not list(Path(tempfile.gettempdir()).glob("nexus-empty-*"))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "crashed (signal SIGKILL: the machine is out of memory, perhaps)"),
        (signal.SIGXCPU, "used up its processor time"),
    ],
)
def test_a_process_that_dies_is_a_refusal(
    number: signal.Signals, words: str, staged: Callable[[ModelProto], Path]
) -> None:
    path = staged(bad.never_ends(batchable=False))

    async def kill() -> None:
        task = asyncio.create_task(try_model(path, "shop", "3", ModelEntry("shop", path.parent), settings_of()))
        process = await trial_process(psutil.Process())
        async with asyncio.timeout(WAIT_SECONDS):
            # Its own processor time says that it is in the endless run.
            while sum(process.cpu_times()[:2]) < 2:
                await asyncio.sleep(0.01)
        process.send_signal(number)
        await task

    with pytest.raises(ModelNotServable) as caught:
        run(kill())
    assert words in caught.value.message
    assert caught.value.reason == "MODEL_REFUSED"


def test_it_runs_out_of_processor_time_without_a_clock_too(staged: Callable[[ModelProto], Path]) -> None:
    path = staged(bad.never_ends(batchable=False))
    order = json.loads(supervisor_trial._order(path, "3", ModelEntry("shop", path.parent), settings_of()))
    order["limits"]["cpu_seconds"] = 2
    process = subprocess.run(
        [sys.executable, "-P", "-m", "nexus_grpc.worker.trial"],
        input=json.dumps(order).encode(),
        capture_output=True,
        check=False,
    )
    assert process.returncode == -signal.SIGXCPU
    steps = [json.loads(line) for line in process.stdout.splitlines()]
    assert steps == [{"step": "start"}, {"step": "scan"}, {"step": "load"}, {"step": "run"}]


def test_it_dies_with_the_supervisor(staged: Callable[[ModelProto], Path], tmp_path: Path) -> None:
    path = staged(bad.never_ends(batchable=False))
    driver = (
        "import asyncio; from pathlib import Path; from nexus_grpc.repository import ModelEntry;"
        "from nexus_grpc.settings import load_settings; from nexus_grpc.supervisor.trial import try_model;"
        f"path = Path({str(path)!r});"
        "asyncio.run(try_model(path, 'shop', '3', ModelEntry('shop', path.parent), load_settings({})))"
    )
    with subprocess.Popen([sys.executable, "-c", driver], cwd=ROOT) as supervisor:
        try:
            process = asyncio.run(trial_process(psutil.Process(supervisor.pid)))
        finally:
            supervisor.kill()
    process.wait(WAIT_SECONDS)


def test_at_most_two_at_a_time(staged: Callable[[ModelProto], Path]) -> None:
    path = staged(bad.never_ends(batchable=False))
    entry, settings = ModelEntry("shop", path.parent), settings_of(trial_seconds=3)

    async def crowd() -> tuple[list[Any], int]:
        others = len(psutil.Process().children())
        together = asyncio.gather(
            *(try_model(path, "shop", str(n), entry, settings) for n in range(1, 5)), return_exceptions=True
        )
        most = 0
        while not together.done():
            most = max(most, len(psutil.Process().children()) - others)
            await asyncio.sleep(0.02)
        return await together, most

    results, most = run(crowd())
    assert most == AT_ONCE_MAX
    # Each has its own time: those that waited for their turn have not used it up by waiting.
    assert all("3 s (trial_seconds)" in str(result) for result in results)
    assert len(results) == 4


def test_nothing_is_left_behind(staged: Callable[[ModelProto], Path]) -> None:
    attempt(staged(bad.good()))
    before = open_descriptors()
    children = psutil.Process().children()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for build in (bad.good, bad.crashes_the_loader, bad.custom_op) * 3:
        path = staged(build())
        try:
            attempt(path)
        except ModelNotServable:
            continue
        assert build is bad.good
    assert open_descriptors() <= before  # an earlier test's may be closed meanwhile
    assert psutil.Process().children() == children
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < memory + (64 << 10)  # KiB


def test_a_trial_that_fails_by_itself_does_not_blame_the_model(
    staged: Callable[[ModelProto], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = staged(bad.good())
    monkeypatch.setattr(supervisor_trial, "TRIAL_MODULE", "nexus_grpc.worker.no_such_module")
    error = refusal(path)
    assert isinstance(error, ModelUnavailable)
    assert "ended with exit code 1" in error.message
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    error = refusal(path)
    assert isinstance(error, ModelUnavailable)
    assert "no process can be started" in error.message
