"""Connecting: TLS with certificates made for the test, metadata, limits, closing."""

import asyncio
import math
import pathlib
import subprocess
import threading
from typing import Any

import grpc
import numpy as np
import pytest

from nexus_grpc.client import AsyncClient, Client, InvalidInput, NexusClientError, Retry, Tls, Unavailable
from nexus_grpc.client.connection import channel_options
from nexus_grpc.pb.inference import grpc_service_pb2 as pb
from tests.harness import require_tool
from tests.unit.client.scripted import Ask, Refuse, ScriptedServer, Sleep

ONCE = Retry(attempts=1)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with an authority (ca.pem), and a server's and a client's certificate signed by it."""
    folder = tmp_path_factory.mktemp("certificates")
    openssl = require_tool("openssl")

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True, timeout=60)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    run(*new, "-x509", "-days", "2", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("server", "client"):
        run(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (folder / "names.cnf").write_text(f"subjectAltName=DNS:{name}.test\n")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names.cnf")
        run("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return folder


def credentials(folder: pathlib.Path, mutual: bool) -> grpc.ServerCredentials:
    pair = ((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())
    return grpc.ssl_server_credentials([pair], (folder / "ca.pem").read_bytes() if mutual else None, mutual)


def test_tls(ask: Ask, certificates: pathlib.Path) -> None:
    root = certificates / "ca.pem"
    with ScriptedServer(credentials=credentials(certificates, mutual=False)) as server:
        for tls in (
            Tls(root_certificates=root, server_name="server.test"),
            Tls(root_certificates=root.read_bytes(), server_name="server.test"),
        ):
            assert ask(server.address, tls=tls).model == "m"
        wrong: list[Tls | None] = [
            None,
            Tls(server_name="server.test"),  # an authority the system does not know
            Tls(root_certificates=root, server_name="other.test"),
        ]
        for distrusting in wrong:
            with pytest.raises(Unavailable):
                ask(server.address, tls=distrusting, retry=ONCE)
        assert len(server.asked) == 2


def test_mutual_tls(ask: Ask, certificates: pathlib.Path) -> None:
    root = certificates / "ca.pem"
    with ScriptedServer(credentials=credentials(certificates, mutual=True)) as server:
        own = Tls(
            root_certificates=root,
            certificate=str(certificates / "client.pem"),
            private_key=certificates / "client.key",
            server_name="server.test",
        )
        assert ask(server.address, tls=own).model == "m"
        with pytest.raises(Unavailable):
            ask(server.address, tls=Tls(root_certificates=root, server_name="server.test"), retry=ONCE)


def test_tls_settings_that_cannot_be(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="go together"):
        Tls(certificate=b"x")
    with pytest.raises(FileNotFoundError):
        Client("x:1", tls=Tls(root_certificates=tmp_path / "none"))


def test_metadata_is_asked_for_with_every_attempt(ask: Ask) -> None:
    tokens = iter(("first", "second"))
    with ScriptedServer(Refuse(grpc.StatusCode.UNAVAILABLE)) as server:
        ask(server.address, metadata=lambda: {"Authorization": f"Bearer {next(tokens)}"}, request_id="mine")
        ask(server.address, metadata={"x-api-key": "k"})
    assert [call.metadata.get("authorization") for call in server.asked] == ["Bearer first", "Bearer second", None]
    assert [call.metadata.get("x-request-id") for call in server.asked] == ["mine", "mine", None]
    assert server.asked[2].metadata["x-api-key"] == "k"


def test_an_api_key_goes_with_every_attempt(ask: Ask) -> None:
    with ScriptedServer(Refuse(grpc.StatusCode.UNAVAILABLE)) as server:
        ask(server.address, api_key="nxk_1", metadata={"x-customer": "c"}, request_id="mine")
    assert [call.metadata.get("x-api-key") for call in server.asked] == ["nxk_1", "nxk_1"]
    assert server.asked[1].metadata["x-customer"] == "c"


@pytest.mark.parametrize("api_key", ["two words", "schlüssel", "line\n"])
@pytest.mark.parametrize("cls", [Client, AsyncClient])
def test_an_api_key_that_cannot_be_one_is_not_repeated(cls: type[Any], api_key: str) -> None:
    with pytest.raises(ValueError, match="api_key") as caught:
        cls("x:1", api_key=api_key)
    assert api_key.strip() not in str(caught.value)


@pytest.mark.parametrize("cls", [Client, AsyncClient])
def test_a_url_is_no_address(cls: type[Any]) -> None:
    for address in ("http://127.0.0.1:8001", "https://x"):
        with pytest.raises(ValueError, match="is a URL; expected HOST:PORT of the server's gRPC port"):
            cls(address)


@pytest.mark.parametrize("request_id", ["two words", "ü", "x" * 129, "a\nb"])
def test_a_request_id_is_one_that_the_server_keeps(ask: Ask, request_id: str) -> None:
    with pytest.raises(InvalidInput, match="request_id"):
        ask("127.0.0.1:1", request_id=request_id)


def test_the_largest_message(ask: Ask) -> None:
    answer = pb.ModelInferResponse(model_name="m" * 5000)
    with ScriptedServer(answer=answer) as server:
        assert ask(server.address).model == "m" * 5000
        with pytest.raises(InvalidInput, match="this client takes at most 1000 ") as caught:
            ask(server.address, max_message_bytes=1000)
        assert (caught.value.code, caught.value.reason) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
        with Client(server.address, max_message_bytes=1000) as client, pytest.raises(InvalidInput) as sent:
            client.infer("m", {"x": np.zeros(1000)}, timeout_s=5)
    assert "this client sends at most 1000 (max_message_bytes): send fewer rows" in sent.value.message


def test_options() -> None:
    options = dict(channel_options("host:1", Tls(server_name="n"), 10, math.inf, own_connection=True))
    assert options["grpc.max_send_message_length"] == options["grpc.max_receive_message_length"] == 10
    assert options["grpc.ssl_target_name_override"] == "n"
    assert options["grpc.use_local_subchannel_pool"] == 1
    assert "grpc.keepalive_time_ms" not in options
    assert "grpc.enable_http_proxy" not in options
    local = dict(channel_options("127.0.0.1:1", None, 10, 5.0, own_connection=False))
    assert local["grpc.keepalive_time_ms"] == 5000
    assert local["grpc.enable_http_proxy"] == 0


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"max_message_bytes": 0}, {"keepalive_s": 0}, {"timeout_s": -1}])
@pytest.mark.parametrize("cls", [Client, AsyncClient])
def test_settings_that_cannot_be(cls: type[Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        cls("x:1", **wrong)


def test_closing(tmp_path: pathlib.Path) -> None:
    with ScriptedServer() as server:
        client = Client(server.address, channels=2)
        client.infer("m", {})
        client.close()
        client.close()
        with pytest.raises(NexusClientError, match="closed") as caught:
            client.infer("m", {})
        assert caught.value.reason == "CLIENT_CLOSED"
        with pytest.raises(NexusClientError, match="closed"):
            client.infer_stream("m", [])
        Client(server.address).close()  # never used


def test_closing_asyncio() -> None:
    async def run(address: str) -> None:
        client = AsyncClient(address, channels=2)
        await client.infer("m", {})
        under_way = asyncio.create_task(client.infer("m", {}))
        await asyncio.sleep(0.3)
        await client.close()
        await client.close()
        # The call ends with an error of ours; only a task that is itself cancelled sees CancelledError.
        with pytest.raises(NexusClientError, match="closed"):
            await under_way
        with pytest.raises(NexusClientError, match="closed"):
            await client.infer("m", {})
        await AsyncClient(address).close()

    with ScriptedServer(Sleep(0.0), Sleep(2.0)) as server:
        asyncio.run(run(server.address))


def test_closing_while_a_call_is_under_way() -> None:
    with ScriptedServer(Sleep(2.0)) as server:
        client = Client(server.address)
        closing = threading.Timer(0.3, client.close)
        closing.start()
        with pytest.raises(NexusClientError) as caught:
            client.infer("m", {})
        closing.join()
    assert caught.value.code == "CANCELLED"


def test_cancelling_a_task_cancels_its_call() -> None:
    async def run(address: str) -> None:
        async with AsyncClient(address) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.infer("m", {}), 0.3)

    with ScriptedServer(Sleep(1.0)) as server:
        asyncio.run(run(server.address))


def test_every_channel_has_its_turn() -> None:
    with ScriptedServer() as server, Client(server.address, channels=3) as client:
        opened = [client._next_channel() for _ in range(6)]
        assert len({id(channel) for channel in opened}) == 3
        assert opened[:3] == opened[3:]
