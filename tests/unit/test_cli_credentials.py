"""What the commands show a server: the environment's credential and certificate, and nothing of it in flags."""

import contextlib
import inspect
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from typer.testing import CliRunner

from nexus_grpc import variables
from nexus_grpc.cli.credentials import RemoteTyper, with_tls
from nexus_grpc.cli.main import app
from nexus_grpc.pb.nexus.v1 import inference_pb2 as nexus
from tests.harness import require_tool

PREDICT = ("predict", "iris", "1")


@dataclass
class Seen:
    """A server, and the headers and client certificates it was shown."""

    address: str = ""
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    common_names: list[tuple[bytes, ...]] = field(default_factory=list)


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:  # type: ignore[type-arg]
        if details.method.endswith("/Upload"):
            return grpc.stream_unary_rpc_method_handler(lambda messages, context: self._refuse(context))
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self._answer(context))

    def _note(self, context: grpc.ServicerContext) -> dict[str, str | bytes]:
        self._seen.metadata.append(dict(context.invocation_metadata() or ()))
        self._seen.common_names.append(tuple(context.auth_context().get("x509_common_name", ())))  # type: ignore[arg-type]
        return self._seen.metadata[-1]

    def _answer(self, context: grpc.ServicerContext) -> bytes:
        shown = self._note(context)
        if not {"x-api-key", "authorization"} & shown.keys():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "this server needs a credential")
        return nexus.PredictResponse(model_id="iris", prediction=[0]).SerializeToString()

    def _refuse(self, context: grpc.ServicerContext) -> bytes:
        self._note(context)
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "no upload here")


@contextlib.contextmanager
def serving(credentials: grpc.ServerCredentials | None = None) -> Iterator[Seen]:
    seen = Seen()
    server = grpc.server(ThreadPoolExecutor(2), handlers=[_Handlers(seen)])
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    seen.address = f"127.0.0.1:{port}"
    server.start()
    try:
        yield seen
    finally:
        server.stop(None).wait()


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in variables.OF_COMMANDS:
        monkeypatch.delenv(name, raising=False)


def nexus_command(seen: Seen, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    result = CliRunner().invoke(app, [*arguments, "--address", seen.address], env=environment)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("variable", "header", "value"),
    [("NEXUS_API_KEY", "x-api-key", "nxk_1"), ("NEXUS_TOKEN", "authorization", "Bearer nxk_1")],
)
def test_the_environment_s_credential_goes_with_each_call(
    variable: str, header: str, value: str, tmp_path: Path
) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"onnx")
    with serving() as seen:
        # With a file's line break.
        assert nexus_command(seen, *PREDICT, **{variable: "nxk_1\n"})[0] == 0
        code, _, error = nexus_command(seen, "models", "upload", str(file), "--id", "x", **{variable: "nxk_1"})
    assert (code, error) == (1, "error: PERMISSION_DENIED: no upload here\n")
    assert [shown.get(header) for shown in seen.metadata] == [value, value]


def test_without_one_the_error_says_where_it_is_taken_from() -> None:
    with serving() as seen:
        code, _, error = nexus_command(seen, *PREDICT)
    assert code == 1
    assert error.startswith("error: UNAUTHENTICATED: this server needs a credential")
    assert "NEXUS_API_KEY" in error
    assert not {"x-api-key", "authorization"} & seen.metadata[0].keys()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"NEXUS_API_KEY": "secret", "NEXUS_TOKEN": "secret"}, "both set"),
        ({"NEXUS_API_KEY": "secret secret"}, "NEXUS_API_KEY has characters"),
        ({"NEXUS_TOKEN": "secret\x1b"}, "NEXUS_TOKEN has characters"),
        ({"NEXUS_TOKEN": "sécret"}, "NEXUS_TOKEN has characters"),
        ({"NEXUS_TLS_KEY": "secret"}, "expected both or neither"),
        ({"NEXUS_TLS_KEY": "secret", "NEXUS_TLS_CERTIFICATE": "c"}, "--tls-ca"),
        ({"NEXUS_TLS_CA": "no-such-file"}, "no-such-file: No such file"),
    ],
)
def test_what_cannot_be_sent_is_said_without_it(environment: dict[str, str], said: str) -> None:
    with serving() as seen:
        code, _, error = nexus_command(seen, *PREDICT, **environment)
    assert (code, seen.metadata) == (1, [])
    assert said in error
    assert "secret" not in error


def test_no_flag_takes_a_credential() -> None:
    """`ps` shows flags to every user of the machine."""
    for command in (PREDICT, ("models", "list"), ("ab", "status"), ("health",), ("rollback", "iris")):
        for flag in ("--api-key", "--token", "--key"):
            assert CliRunner().invoke(app, [*command, flag, "x"]).exit_code != 0
        assert "--tls-ca" in CliRunner().invoke(app, [*command, "--help"]).stdout


def test_with_tls_keeps_a_command_s_own_options() -> None:
    def command(name: str, count: int = 3) -> None:
        """Its help."""

    assert list(inspect.signature(with_tls(command)).parameters) == ["name", "count", "tls_ca"]
    assert with_tls(command).__doc__ == "Its help."
    # A group's decorator leaves the function as it was, for others that call it.
    assert RemoteTyper().command("x")(command) is command


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority (ca.pem), and a server's and a client's certificate signed by it."""
    folder = tmp_path_factory.mktemp("certificates")
    openssl = require_tool("openssl")

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    run(*new, "-x509", "-days", "2", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem")
    (folder / "names.cnf").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        run(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names.cnf")
        run("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return folder


def server_credentials(folder: Path, mutual: bool) -> grpc.ServerCredentials:
    pair = ((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())
    return grpc.ssl_server_credentials([pair], (folder / "ca.pem").read_bytes() if mutual else None, mutual)


def test_tls(certificates: Path) -> None:
    ca = str(certificates / "ca.pem")
    with serving(server_credentials(certificates, mutual=False)) as seen:
        assert nexus_command(seen, *PREDICT, "--tls-ca", ca, NEXUS_API_KEY="k")[0] == 0
        assert nexus_command(seen, *PREDICT, NEXUS_API_KEY="k", NEXUS_TLS_CA=ca)[0] == 0
        # An authority that the system does not know.
        code, _, error = nexus_command(seen, *PREDICT, "--tls-ca", "system", NEXUS_API_KEY="k")
        assert code == 1
        assert "TLS failed" in error
        # Plain text to a port with TLS.
        code, _, error = nexus_command(seen, *PREDICT, "--timeout", "3", NEXUS_API_KEY="k")
        assert code == 1
        assert "--tls-ca" in error
    assert [shown["x-api-key"] for shown in seen.metadata] == ["k", "k"]


def test_a_client_certificate(certificates: Path) -> None:
    own = {"NEXUS_TLS_CERTIFICATE": str(certificates / "client.pem"), "NEXUS_TLS_KEY": str(certificates / "client.key")}
    with serving(server_credentials(certificates, mutual=True)) as seen:
        ca = str(certificates / "ca.pem")
        assert nexus_command(seen, *PREDICT, "--tls-ca", ca, **own, NEXUS_API_KEY="k")[0] == 0
    assert seen.common_names == [(b"client",)]
