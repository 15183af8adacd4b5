"""Uploads that go well, each way there is: gRPC, REST, the command line, the Python clients. What goes wrong is in
test_upload_refused.py."""

import asyncio
import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import pathlib
import pty
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nexus_grpc.client import AlreadyExists, AsyncClient, Client, InvalidInput, NexusClientError
from tests.harness import NEXUS, free_port
from tests.integration import bad_models
from tests.integration.rest import get
from tests.integration.uploading import Site, messages, running_site
from tests.lifecycle import refused, request_for, times, wait_for

TRIAL_SECONDS = 6
MIB = 1 << 20
FIVE = times(5)
ROW = {"x": np.array([[1, 100]], np.float32)}
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    options = (f"--trial-seconds={TRIAL_SECONDS}", "--workers=2", "--fronts=2")
    with running_site(tmp_path_factory.mktemp("uploads"), *options) as site:
        yield site


@pytest.fixture
def model() -> str:
    """A model's id that no other test has."""
    return f"model-{next(_numbers)}"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- REST ---


def test_an_upload_by_rest_answers_at_once(site: Site, model: str) -> None:
    answer = site.by_rest(FIVE, id=model)
    assert answer.status == 201, answer
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == {
        "model": {
            "id": model,
            "name": model,
            "version": "1",
            "path": f"{model}/1/model.onnx",
            "version_name": "",
            "sha256": sha256(FIVE),
            "size_bytes": len(FIVE),
        },
        "info": {
            "inputs": [{"name": "x", "dtype": 1, "shape": [-1, 2], "datatype": "FP32"}],
            "outputs": [{"name": "y", "dtype": 1, "shape": [-1, 2], "datatype": "FP32"}],
        },
        "state": "READY",
        "active": True,
        "note": "",
    }
    assert site.predict(model) == ("1", 5)
    assert (site.repository / model / "1" / "model.onnx").read_bytes() == FIVE
    listed = {each["id"]: each for each in get(site.port, "/models").json["models"]}
    assert listed[model]["version"] == "1"


def test_curl_uploads_as_the_readme_says(site: Site, model: str, tmp_path: pathlib.Path) -> None:
    for field in ("file", "model"):
        (tmp_path / "m.onnx").write_bytes(FIVE)
        url = f"http://127.0.0.1:{site.port}/models/upload"
        form = ["-F", f"{field}=@{tmp_path / 'm.onnx'}", "-F", f"id={model}-{field}", "-F", "name=Five times"]
        command = ["curl", "-s", "-w", "%{http_code}", *form, url]
        said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        assert said.endswith("201"), said
        assert json.loads(said[:-3])["model"]["name"] == "Five times"
        assert site.predict(f"{model}-{field}") == ("1", 5)


def test_versions_come_and_none_is_replaced(site: Site, model: str) -> None:
    assert site.by_rest(times(2), id=model).status == 201
    again = site.by_rest(times(3), id=model, version="1")
    assert again.status == 409
    assert again.json["error"]["code"] == "ALREADY_EXISTS"
    assert site.predict(model) == ("1", 2)
    assert (site.repository / model / "1" / "model.onnx").read_bytes() == times(2)
    named = site.by_rest(times(3), id=model, version="1.0.0", name="Three times").json
    assert (named["model"]["version"], named["model"]["version_name"], named["active"]) == ("1.0.0", "1.0.0", True)
    assert named["model"]["name"] == "Three times"
    listed = {each["id"]: each for each in get(site.port, "/models").json["models"]}[model]
    info = get(site.port, f"/models/info?id={model}").json
    for shown in (listed, info):
        assert (shown["name"], shown["version"]) == ("Three times", "1.0.0")
        assert shown["path"] == f"{model}/2/model.onnx"
    assert site.predict(model) == ("2", 3)
    assert site.predict(model, "1.0.0") == ("2", 3)
    assert site.predict(model, "v1") == ("1", 2)
    assert site.by_rest(times(4), id=model, version="1.0.0").status == 409
    assert site.by_rest(times(4), id=model, version="v2").status == 409
    assert site.by_rest(times(7), id=model, version="7").json["model"]["version"] == "7"
    assert site.predict(model) == ("7", 7)
    assert site.by_rest(times(9), id=model, version="v9").json["model"]["version"] == "v9"
    assert get(site.port, f"/models/info?id={model}").json["version"] == "v9"
    assert site.predict(model, "9") == site.predict(model, "v9") == ("9", 9)


def test_a_place_that_something_else_has_is_passed_over(site: Site, model: str) -> None:
    (site.repository / model / "1").mkdir(parents=True)
    (site.repository / model / "v2").symlink_to("nowhere")
    answer = site.by_rest(times(3), id=model)
    assert (answer.status, answer.json["model"]["version"]) == (201, "3")
    assert site.predict(model) == ("3", 3)
    (site.repository / f"{model}.md").write_text("notes")
    refused = site.by_rest(times(3), id=f"{model}.md")
    assert refused.status == 409
    assert "is something else than a folder" in refused.json["error"]["message"]


def test_a_version_beside_the_chosen_one_waits(site: Site, model: str) -> None:
    """Per policy: who has chosen a version keeps it."""
    assert site.by_rest(times(2), id=model).status == 201
    site.admin.models("Activate", id=model, version="1")
    second = site.by_rest(times(3), id=model).json
    assert (second["state"], second["active"]) == ("READY", False)
    command = f"nexus models activate {model} 2"
    why = "version 1 was chosen to answer them (activate, rollback or promote)"
    assert second["note"].startswith(
        f"requests that name no version do not get it: {why}; to change that: {command}, or"
    )
    assert site.predict(model) == ("1", 2)
    assert site.predict(model, "2") == ("2", 3)
    waiting = [json.loads(line) for line in site.server.log_text().splitlines() if "uploaded version waits" in line]
    assert [(each["version"], each["note"]) for each in waiting if each["model"] == model] == [("2", second["note"])]


def test_an_older_version_waits_for_the_newer(site: Site, model: str) -> None:
    assert site.by_rest(times(7), id=model, version="7").json["note"] == ""
    assert "version 7 is newer, and answers" in site.by_rest(times(2), id=model, version="2").json["note"]
    site.admin.traffic("Setup", model=model, candidate_version="2")
    by_grpc = site.by_grpc(times(8), id=model)
    assert "an experiment runs beside version 7, and activating a version ends it" in by_grpc.note


def test_store_only_stores(site: Site, model: str) -> None:
    answer = site.by_rest(times(2), id=model, store_only="true", labels={"team": "ü"}).json
    assert (answer["state"], answer["active"]) == ("UNLOADED", False)
    assert "it is stored only, and not loaded; to change that: nexus models activate" in answer["note"]
    [version] = site.admin.models("GetRecord", id=model).versions
    assert (version.state, dict(version.labels), version.source) == ("UNLOADED", {"team": "ü"}, "upload")
    with refused("UNAVAILABLE"):
        site.admin.client.infer(request_for(name=model))
    site.admin.models("Load", id=model, version="1")
    assert site.predict(model) == ("1", 2)


# --- gRPC ---


def test_an_upload_by_grpc(site: Site, model: str) -> None:
    content = times(3, megabytes=5)
    header = {"sha256": sha256(content).upper(), "size_bytes": len(content), "name": "Three", "labels": {"a": "b"}}
    answer = site.by_grpc(content, id=model, **header)
    assert (answer.model.version, answer.model.name, answer.state, answer.active) == ("1", "Three", "READY", True)
    assert answer.model.sha256 == sha256(content)
    assert [(each.name, list(each.shape)) for each in answer.info.inputs] == [("x", [-1, 2])]
    assert site.predict(model) == ("1", 3)
    with refused("ALREADY_EXISTS"):
        site.by_grpc(FIVE, id=model, version="1")
    assert site.predict(model) == ("1", 3)


def test_what_lies_on_the_disk_and_in_the_registry(site: Site, model: str) -> None:
    site.by_grpc(FIVE, id=model, version="2024-a", name="Fünf", labels={"team": "risk"})
    folder = site.repository / model / "1"
    info = json.loads((folder / "model_info.json").read_text(encoding="utf-8"))
    tensor = {"dtype": 1, "shape": [-1, 2], "datatype": "FP32"}
    created_at = info.pop("created_at")
    assert info == {
        "id": model,
        "name": "Fünf",
        "version": "1",
        "version_name": "2024-a",
        "sha256": sha256((folder / "model.onnx").read_bytes()),
        "size_bytes": len(FIVE),
        "inputs": [{"name": "x", **tensor}],
        "outputs": [{"name": "y", **tensor}],
    }
    [version] = site.admin.models("GetRecord", id=model).versions
    assert (version.sha256, version.size_bytes, version.created_at) == (info["sha256"], len(FIVE), created_at)
    assert (version.version_name, dict(version.labels)) == ("2024-a", {"team": "risk"})
    [entry] = site.admin.models("History", id=model).entries
    assert (entry.action, entry.version, json.loads(entry.detail)["sha256"]) == ("upload", "1", info["sha256"])
    assert entry.actor == version.created_by
    assert entry.actor.startswith("grpc 127.0.0.1:")
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model_info.json"]
    assert oct((folder / "model.onnx").stat().st_mode & 0o777) == "0o600"
    assert site.staged() == []


def test_uploaded_models_are_there_after_a_restart(tmp_path: pathlib.Path) -> None:
    """Also with the front on grpcio's public API."""
    folder = tmp_path / "models" / ".nexus-staging"
    folder.mkdir(mode=0o700, parents=True)
    # There when the server was killed in the middle of an upload.
    (folder / "999999999-upload-00").write_bytes(b"half")
    for api in ("auto", "public"):
        with running_site(tmp_path, f"--front-api={api}") as site:
            assert site.staged() == []
            assert site.by_grpc(FIVE, id=f"{api}-grpc", version="1.0.0").state == "READY"
            assert site.by_rest(FIVE, id=f"{api}-rest").status == 201
            # "" is the version that answers.
            versions = {"auto-grpc": "1.0.0", "auto-rest": "v1", f"{api}-grpc": "1", f"{api}-rest": ""}
            for model, version in versions.items():
                assert site.predict(model, version) == ("1", 5)
                assert [entry.action for entry in site.admin.models("History", id=model).entries] == ["upload"]


def test_uploads_at_once_lose_nothing(site: Site, model: str) -> None:
    """Eight models and eight versions of one, both ways."""
    done: list[Any] = []

    def one(number: int) -> None:
        if number % 2:
            done.append(site.by_rest(times(number), id=model if number > 8 else f"{model}-{number}").status)
        else:
            done.append(site.by_grpc(times(number), id=model if number > 8 else f"{model}-{number}").state)

    for first in range(1, 17, 4):
        threads = [threading.Thread(target=one, args=(number,)) for number in range(first, first + 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert sorted(map(str, done)) == ["201"] * 8 + ["READY"] * 8
    for number in range(1, 9):
        assert site.predict(f"{model}-{number}") == ("1", number)
    factors = set()
    for version in range(1, 9):
        site.admin.models("Load", id=model, version=str(version))
        factors.add(site.predict(model, str(version))[1])
    assert factors == set(range(9, 17))
    assert len(site.admin.models("GetRecord", id=model).versions) == 8


# --- the Python clients ---


def test_the_blocking_client(site: Site, model: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(FIVE)
    with Client(site.server.address) as client:
        sent = client.upload(model, path, version="1.0.0", name="Five", labels={"a": "b"}, request_id="mine")
        assert (sent.model, sent.version, sent.version_name, sent.name) == (model, "1", "1.0.0", "Five")
        assert (sent.sha256, sent.size_bytes, sent.state, sent.active) == (sha256(FIVE), len(FIVE), "READY", True)
        assert (sent.inputs[0].name, sent.inputs[0].shape, sent.request_id) == ("x", (-1, 2), "mine")
        assert client.infer(model, ROW)["y"].tolist() == [[5, 500]]
        with pytest.raises(AlreadyExists):
            client.upload(model, FIVE, version="1")
        with pytest.raises(InvalidInput) as wrong:
            client.upload(model, b"garbage")
        assert wrong.value.reason == "NOT_ONNX"
        with pytest.raises(NexusClientError) as bad:
            client.upload(model, bad_models.custom_op().SerializeToString())
        assert (bad.value.code, bad.value.reason) == ("FAILED_PRECONDITION", "MODEL_REFUSED")
        with pytest.raises(FileNotFoundError):
            client.upload(model, tmp_path / "nowhere")
        stored = client.upload(model, times(6), store_only=True)
        assert (stored.version, stored.state, stored.active) == ("2", "UNLOADED", False)
        assert client.infer(model, ROW)["y"].tolist() == [[5, 500]]


def test_the_asyncio_client(site: Site, model: str) -> None:
    async def several() -> None:
        async with AsyncClient(site.server.address) as client:
            sent = await asyncio.gather(*(client.upload(f"{model}-{n}", times(n)) for n in (1, 2, 3)))
            assert [(each.model, each.state) for each in sent] == [(f"{model}-{n}", "READY") for n in (1, 2, 3)]
            for number in (1, 2, 3):
                answer = await client.infer(f"{model}-{number}", ROW)
                assert answer["y"].tolist() == [[number, 100 * number]]
            with pytest.raises(AlreadyExists):
                await client.upload(f"{model}-1", FIVE, version="1")

    asyncio.run(several())


def test_an_asyncio_upload_that_is_cancelled(site: Site, model: str) -> None:
    endless = bad_models.never_ends(batchable=False).SerializeToString()

    async def give_up() -> None:
        async with AsyncClient(site.server.address) as client:
            task = asyncio.create_task(client.upload(model, endless))
            async with asyncio.timeout(20):
                while not site.staged():
                    await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await client.live()

    with site.unchanged():
        asyncio.run(give_up())


# --- the command line ---


def nexus(site: Site, *arguments: str, address: str = "") -> tuple[int, str, str]:
    command = [*NEXUS, "models", "upload", *arguments, "--address", address or site.server.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "five.onnx"
    path.write_bytes(FIVE)
    return path


def test_the_command(site: Site, model: str, file: pathlib.Path) -> None:
    code, out, err = nexus(site, str(file), "--id", model, "--name", "Five", "--label", "a=b", "--label", "c=d=e")
    assert (code, err) == (0, ""), "no bar where nobody looks"
    assert f"uploaded {model}, version 1: READY; it answers requests that name no version" in out
    assert ["input", "x", "FP32", "[-1,", "2]"] in [line.split() for line in out.splitlines()]
    assert site.predict(model) == ("1", 5)
    [version] = site.admin.models("GetRecord", id=model).versions
    assert dict(version.labels) == {"a": "b", "c": "d=e"}
    code, out, _ = nexus(site, str(file), "--id", model, "--store-only")
    assert f"to change that: nexus models activate {model} 2, or POST /v1/models/{model}/activate" in out
    code, out, _ = nexus(site, str(file), "--id", model, "--version", "1.1", "--store-only", "--json")
    answer = json.loads(out)
    assert (code, answer["model"]["version_name"], answer["state"]) == (0, "1.1", "UNLOADED")
    assert answer["info"]["inputs"][0]["shape"] == [-1, 2]


def test_its_help_teaches() -> None:
    said = subprocess.run(
        [*NEXUS, "models", "upload", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "nexus models upload churn.onnx --id churn" in said.stdout
    assert "never replaced" in said.stdout


def test_the_command_says_what_is_wrong(site: Site, model: str, file: pathlib.Path) -> None:
    (file.parent / "text").write_text("no model")
    with site.unchanged():
        for arguments, exit_code, words in (
            ([str(file), "--id", "times", "--version", "1"], 1, "error: ALREADY_EXISTS: model 'times' has version 1"),
            ([str(file.parent / "text"), "--id", model], 1, "error: INVALID_ARGUMENT: not an ONNX model"),
            ([str(file), "--id", "../x"], 1, "error: INVALID_ARGUMENT: the id must be"),
            ([str(file)], 2, "--id"),
            ([str(file.parent / "nowhere"), "--id", model], 2, "does not exist"),
            ([str(file.parent), "--id", model], 2, "is a directory"),
            ([str(file), "--id", model, "--label", "x"], 2, "expected KEY=VALUE"),
            ([str(file), "--id", model, "--name", os.fsdecode(b"\xff")], 1, "error: the upload's header"),
        ):
            code, out, err = nexus(site, *arguments)
            assert (code, out) == (exit_code, ""), err
            assert words in " ".join(err.split()), err
            assert "Traceback" not in err
        code, _, err = nexus(site, str(file), "--id", model, address=f"127.0.0.1:{free_port()}")
        assert (code, "no server at" in err) == (1, True)


class Terminal:
    """A command whose standard error is a terminal; `shown` is what has come there."""

    def __init__(self, *command: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        variables = {**os.environ, "TERM": "xterm-256color"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, text=True, env=variables)
        os.close(slave)
        self.shown = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            while piece := os.read(self._master, 1 << 16):
                self.shown += piece.decode("utf-8", "replace")

    def wait(self, seconds: float = 60) -> tuple[int, str]:
        """(exit code, standard output)."""
        out, _ = self.process.communicate(timeout=seconds)
        self._reader.join(10)
        os.close(self._master)
        return self.process.returncode, out


def test_a_bar_on_a_terminal(site: Site, model: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "large").write_bytes(times(5, megabytes=40))
    command = [*NEXUS, "models", "upload", str(tmp_path / "large"), "--id", model, "--address", site.server.address]
    terminal = Terminal(*command, "--json")
    code, out = terminal.wait()
    assert code == 0, terminal.shown
    assert json.loads(out)["model"]["id"] == model
    assert "━" in terminal.shown
    assert "the server tries it" in terminal.shown
    assert "41.9/41.9 MB" in terminal.shown
    assert terminal.shown.rstrip().endswith("\x1b[2K"), "the bar is wiped away at the end"


def test_ctrl_c_ends_it_cleanly(site: Site, model: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "endless").write_bytes(bad_models.never_ends(batchable=False).SerializeToString())
    command = [*NEXUS, "models", "upload", str(tmp_path / "endless"), "--id", model, "--address", site.server.address]
    with site.unchanged():
        terminal = Terminal(*command)
        try:
            wait_for(lambda: "the server tries it" in terminal.shown and site.staged())
            began = time.monotonic()
            terminal.process.send_signal(signal.SIGINT)
            code, out = terminal.wait(10)
        finally:
            terminal.process.kill()
        assert (code, out) == (130, "")
        assert time.monotonic() - began < 5
        assert "Traceback" not in terminal.shown
        assert "\x1b[?25h" in terminal.shown, "the cursor is back"


def test_a_changed_file_is_noticed(site: Site, model: str) -> None:
    with site.unchanged(), refused("INVALID_ARGUMENT") as said:
        site.call(messages(FIVE, id=model, sha256=sha256(times(4))), timeout=20)
    assert "SHA-256" in said[0]
