"""Envoy as the supervisor keeps it: started, told from an external one, with TLS, its log, and what else starts it."""

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import yaml

from nexus_grpc.supervisor.envoy_setup import find_binary
from tests.harness import NEXUS, ROOT, Server, certificate, copy_models, free_port, running_server, wait_rest
from tests.integration import rest

START_SECONDS = 20.0


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return copy_models(tmp_path_factory.mktemp("models"), "iris")


def wait_for(condition: Any, what: str, seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def log_lines(server: Server, event: str) -> list[dict[str, Any]]:
    """The log's JSON lines with this event."""
    lines = [json.loads(line) for line in server.log_text().splitlines() if line.startswith("{") and line.endswith("}")]
    return [line for line in lines if line["event"] == event]


def nexus(*arguments: str, folder: pathlib.Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith("NEXUS_")} | environment
    return subprocess.run(
        [*NEXUS, *arguments], capture_output=True, text=True, timeout=60, cwd=folder, env=variables, check=False
    )


# --- as a sidecar ---


def test_it_is_a_child_apart(rest_server: Server) -> None:
    [envoy] = rest_server.children("envoy")
    assert envoy.ppid() == rest_server.process.pid
    # Ctrl-C goes to the terminal's process group.
    assert os.getsid(envoy.pid) == os.getpgid(envoy.pid) == envoy.pid
    assert os.readlink(f"/proc/{envoy.pid}/fd/0") == "/dev/null"
    # Names of files that its command line shows: nothing of it is on disk any more.
    assert any("/dev/fd/" in word for word in envoy.cmdline())
    admin = [word for word in envoy.cmdline() if "admin" in word and word.startswith("{")]
    assert not os.path.exists(os.path.dirname(json.loads(admin[0])["admin"]["address"]["pipe"]["path"]))
    assert {pathlib.Path(item.path).name for item in envoy.open_files()} <= {"stderr"}


def test_rest_answers(rest_server: Server) -> None:
    answer = rest.call(rest_server.rest_port, "GET", "/health")
    assert answer.status == 200
    assert rest.post(rest_server.rest_port, "/predict", rest.IRIS).status == 200


def test_it_is_announced_once_it_answers(rest_server: Server) -> None:
    [serving] = log_lines(rest_server, "serving")
    assert serving["rest"] == f"http://127.0.0.1:{rest_server.rest_port}"
    line = f"curl http://127.0.0.1:{rest_server.rest_port}/predict -H 'content-type: application/json' -d"
    wait_for(lambda: line in rest_server.log_text(), "the start-up table has a curl line")


def test_it_is_in_the_metrics(rest_server: Server) -> None:
    [envoy] = rest_server.children("envoy")
    assert rest_server.metric("nexus_process_info", role="envoy", index="0", pid=str(envoy.pid)) == 1
    assert rest_server.metric("nexus_process_resident_memory_bytes", role="envoy") > 1 << 20
    assert rest_server.metric("nexus_process_cpu_seconds_total", role="envoy") > 0
    assert "nexus_envoy_restarts_total 0.0" in rest_server.metrics()


def test_one_request_id_in_the_answer_and_both_logs(rest_server: Server) -> None:
    sent = "sidecar-test-0123456789"
    answer = rest.post(rest_server.rest_port, "/predict", rest.IRIS, X_Request_ID=sent)
    assert answer.headers["x-request-id"] == sent

    def both() -> bool:
        seen = [line for line in rest_server.log_text().splitlines() if sent in line]
        return any("http_request" in line for line in seen) and any("http_request" not in line for line in seen)

    wait_for(both, "the request in Envoy's log and in the server's", 10)
    [line] = [line for line in log_lines(rest_server, "http_request") if line["request_id"] == sent]
    assert (line["status"], line["path"]) == (200, "/predict")


def test_a_made_request_id_is_the_same_in_both_logs(rest_server: Server) -> None:
    made = rest.post(rest_server.rest_port, "/predict", rest.IRIS).headers["x-request-id"]
    assert len(made) >= 16
    wait_for(lambda: rest_server.log_text().count(f'"{made}"') >= 2, "the request in both logs", 10)


def test_an_error_that_envoy_makes_is_in_the_log(rest_server: Server) -> None:
    answer = rest.call(rest_server.rest_port, "GET", "/no-such-path", X_Request_ID="sidecar-404")
    assert answer.status == 404
    wait_for(
        lambda: any(line["request_id"] == "sidecar-404" for line in log_lines(rest_server, "http_request")),
        "the request in Envoy's log",
        10,
    )


def test_two_fronts_share_its_requests(tmp_path: pathlib.Path, iris: pathlib.Path) -> None:
    with running_server(tmp_path, "--fronts=2", "--workers=1", repository=iris, rest=True) as server:
        listening = pathlib.Path("/proc/net/unix").read_text()
        for index in (0, 1):
            assert f"@nexus-{server.process.pid}-" in listening
            assert any(line.rstrip().endswith(f"-{index}") for line in listening.splitlines() if "@nexus-" in line)
        answers = [rest.post(server.rest_port, "/predict", rest.IRIS).status for _ in range(20)]
        assert answers == [200] * 20
        # SIGINT, as Ctrl-C sends it, to the supervisor's whole group.
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 0


# --- without, or another's ---


def test_rest_may_be_left_out(server: Server) -> None:
    assert server.children("envoy") == []
    assert "nexus_envoy_restarts" not in server.metrics()


@contextlib.contextmanager
def own_envoy(bootstrap: str, folder: pathlib.Path) -> Iterator[subprocess.Popen[str]]:
    path = folder / "bootstrap.json"
    path.write_text(bootstrap)
    command = [find_binary(), "-c", str(path), "--disable-hot-restart", "--concurrency", "1", "-l", "warning"]
    with open(folder / "envoy.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, cwd=folder)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


def test_an_external_envoy(tmp_path: pathlib.Path, iris: pathlib.Path) -> None:
    rest_port = free_port()
    options = [f"--rest-port={rest_port}", "--envoy=external"]
    with running_server(tmp_path, *options, "--workers=1", repository=iris) as server:
        wait_for(lambda: log_lines(server, "serving"), "the server says that it serves")
        assert server.children("envoy") == []
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", rest_port), 2):
            pass
        wait_for(lambda: "nexus envoy bootstrap" in server.log_text(), "the start-up table says how to go on")
        ports = [f"--grpc-port={server.port}", f"--metrics-port={server.metrics_port}"]
        printed = nexus("envoy", "bootstrap", *options, *ports, folder=tmp_path)
        assert printed.returncode == 0, printed.stderr
        with own_envoy(printed.stdout, tmp_path) as envoy:
            wait_rest(rest_port, envoy, tmp_path / "envoy.log")
            assert rest.call(rest_port, "GET", "/health").status == 200
            assert rest.post(rest_port, "/predict", rest.IRIS).status == 200
            assert rest.call(rest_port, "GET", "/metrics").body.startswith(b"# HELP")


def test_the_bootstrap_of_two_containers_is_valid(tmp_path: pathlib.Path) -> None:
    arguments = ["--upstream", "server:8001", "--metrics", "server:8002", "--host=0.0.0.0"]
    printed = nexus("envoy", "bootstrap", *arguments, folder=tmp_path, NEXUS_INSECURE_ALLOW_ANONYMOUS="1")
    assert printed.returncode == 0, printed.stderr
    assert '"address": "server"' in printed.stdout
    path = tmp_path / "bootstrap.json"
    path.write_text(printed.stdout)
    command = [find_binary(), "--mode", "validate", "-c", str(path)]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--rest-port=0"], "rest_port = 0"), (["--upstream", "server"], "--upstream = 'server': expected HOST:PORT")],
)
def test_a_bootstrap_that_cannot_be(arguments: list[str], words: str, tmp_path: pathlib.Path) -> None:
    printed = nexus("envoy", "bootstrap", *arguments, folder=tmp_path)
    assert (printed.returncode, printed.stdout) == (78, "")
    assert words in printed.stderr


# --- that cannot start ---


@pytest.mark.parametrize("shared", [True, False], ids=["reuse-port", "plain"])
def test_a_taken_port(shared: bool, tmp_path: pathlib.Path, iris: pathlib.Path) -> None:
    with socket.socket() as taken:
        # Also a listener that would let others share the port is another's.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = [f"--grpc-port={free_port()}", f"--rest-port={port}", "--metrics-port=0"]
        done = nexus("serve", f"--model-repository={iris}", *ports, folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        f"nexus: 127.0.0.1:{port} is in use by another process; stop it or choose another --rest-port (0 = no REST)"
    )


def test_wrong_tls_files_are_told_before_anything_starts(tmp_path: pathlib.Path, iris: pathlib.Path) -> None:
    chain, _ = certificate(tmp_path, "a")
    _, other = certificate(tmp_path, "b")
    arguments = ["serve", f"--model-repository={iris}", f"--rest-tls-certificate={chain}"]
    assert nexus(*arguments, folder=tmp_path).stderr == (
        "error: rest_tls_certificate and rest_tls_key: expected both or neither\n"
    )
    missing = nexus(*arguments, "--rest-tls-key=none.key", folder=tmp_path)
    assert (missing.returncode, missing.stderr) == (
        78,
        "error: rest_tls_key = 'none.key': No such file or directory\n",
    )
    mismatch = nexus(*arguments, f"--rest-tls-key={other}", folder=tmp_path)
    assert mismatch.returncode == 78
    assert "the key is not that of the certificate" in mismatch.stderr
    assert "Traceback" not in mismatch.stderr


def test_tls(tmp_path: pathlib.Path, iris: pathlib.Path) -> None:
    chain, key = certificate(tmp_path, "rest")
    options = [f"--rest-tls-certificate={chain.name}", f"--rest-tls-key={key.name}", "--workers=1"]
    with running_server(tmp_path, *options, repository=iris, rest=True, wait=False) as server:
        wait_for(lambda: log_lines(server, "serving"), f"it serves:\n{server.log_text()}", 40)
        wait_for(lambda: f"https://127.0.0.1:{server.rest_port}" in server.log_text(), "the table says https")
        context = ssl.create_default_context(cafile=str(chain))
        context.set_alpn_protocols(["h2", "http/1.1"])
        with (
            socket.create_connection(("127.0.0.1", server.rest_port), 10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            assert secured.selected_alpn_protocol() == "h2"
        connection = http.client.HTTPSConnection(
            "127.0.0.1", server.rest_port, timeout=20, context=ssl.create_default_context(cafile=str(chain))
        )
        with contextlib.closing(connection):
            connection.request("POST", "/predict", json.dumps(rest.IRIS), rest.JSON)
            assert connection.getresponse().status == 200
        with pytest.raises((OSError, http.client.HTTPException)):
            rest.call(server.rest_port, "GET", "/health")
        assert server.stop() == 0


# --- what else starts or asks it ---


def test_doctor_looks_at_envoy(tmp_path: pathlib.Path) -> None:
    found = json.loads(nexus("doctor", "--json", folder=tmp_path).stdout)["findings"]
    [envoy] = [finding for finding in found if finding["check"] == "Envoy"]
    assert envoy["state"] == "ok"
    assert envoy["found"].startswith("1.40.")
    assert any(finding["check"] == "port 8080" for finding in found)


def test_health(rest_server: Server, tmp_path: pathlib.Path) -> None:
    # The REST port speaks gRPC too.
    for address in (rest_server.address, f"127.0.0.1:{rest_server.rest_port}"):
        asked = nexus("health", "--address", address, folder=tmp_path)
        assert (asked.returncode, asked.stdout) == (0, "SERVING\n"), asked.stderr
    asked = nexus("health", "--json", "--address", rest_server.address, folder=tmp_path)
    assert json.loads(asked.stdout) == {"service": "", "status": "SERVING"}
    unknown = nexus("health", "no.such.Service", "--address", rest_server.address, folder=tmp_path)
    assert unknown.returncode == 1
    assert "NOT_FOUND" in unknown.stderr


def test_health_without_a_server(tmp_path: pathlib.Path) -> None:
    asked = nexus("health", "--address", f"127.0.0.1:{free_port()}", folder=tmp_path)
    assert asked.returncode == 1
    assert asked.stderr.startswith("error: no server at ")


def test_docker_compose() -> None:
    """The services' own tests are elsewhere: here that the file is one, and says what it must."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert set(services) == {"server", "bootstrap", "envoy"}
    assert services["server"]["environment"]["NEXUS_ENVOY"] == "external"
    assert services["envoy"]["image"].endswith("v1.40.0")
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0:
        command = [docker, "compose", "--file", str(ROOT / "docker-compose.yml"), "config", "--quiet"]
        checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert checked.returncode == 0, checked.stderr


def test_nothing_of_the_sidecars_is_left(tmp_path: pathlib.Path, iris: pathlib.Path) -> None:
    """Also of one that ends while Envoy starts."""
    environment = {"TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    with running_server(
        tmp_path, "--workers=1", repository=iris, rest=True, wait=False, environment=environment
    ) as server:
        wait_for(lambda: server.children("envoy"), "Envoy starts", 40)
        assert server.stop() == 0
        assert not [each for each in psutil.process_iter(["cwd"]) if each.info["cwd"] == str(tmp_path)]
        assert not [path for path in (tmp_path / "temporary").iterdir() if "envoy" in path.name]
