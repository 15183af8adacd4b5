"""nexus_grpc/client/uploads.py: what is sent of a file, and what fails before anything is."""

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from nexus_grpc.client import AsyncClient, Client, InvalidInput, NexusClientError, Unavailable
from nexus_grpc.client.uploads import CHUNK_BYTES, Upload, uploaded
from nexus_grpc.pb.nexus.v1.models_pb2 import UploadResponse
from tests.harness import free_port

CONTENT = os.urandom(2 * CHUNK_BYTES + 5)


def test_the_header_first_then_the_file_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(CONTENT)
    for source in (CONTENT, tmp_path / "m", str(tmp_path / "m")):
        upload = Upload("iris", source, name="Iris", version="1.0.0", labels={"a": "b"}, store_only=True)
        for _ in range(2):
            header, *rest = upload
            assert (header.header.id, header.header.name, header.header.version) == ("iris", "Iris", "1.0.0")
            assert (dict(header.header.labels), header.header.store_only) == ({"a": "b"}, True)
            assert header.header.sha256 == hashlib.sha256(CONTENT).hexdigest()
            assert header.header.size_bytes == upload.size_bytes == len(CONTENT)
            assert [len(message.chunk) for message in rest] == [CHUNK_BYTES, CHUNK_BYTES, 5]
            assert b"".join(message.chunk for message in rest) == CONTENT


def test_an_empty_file_is_the_servers_to_refuse() -> None:
    [only] = Upload("iris", b"")
    assert only.header.size_bytes == 0


@pytest.mark.parametrize("header", [{"name": "\ud800"}, {"version": os.fsdecode(b"\xff")}, {"labels": {"a": 1}}])
def test_what_has_no_form_on_the_wire(header: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="header"):
        Upload("iris", b"x", **header)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with Client("127.0.0.1:1") as client:
        with pytest.raises(FileNotFoundError):
            client.upload("iris", tmp_path / "nowhere")
        with pytest.raises(IsADirectoryError):
            client.upload("iris", tmp_path)


def test_without_a_server_and_on_a_closed_client() -> None:
    address = f"127.0.0.1:{free_port()}"
    with Client(address) as client, pytest.raises(Unavailable):
        client.upload("iris", b"x", timeout_s=20)
    with pytest.raises(NexusClientError) as caught:
        client.upload("iris", b"x")
    assert caught.value.reason == "CLIENT_CLOSED"

    async def same() -> None:
        async with AsyncClient(address) as client:
            with pytest.raises(Unavailable):
                await client.upload("iris", b"x", timeout_s=20)
        with pytest.raises(NexusClientError) as caught:
            await client.upload("iris", b"x")
        assert caught.value.reason == "CLIENT_CLOSED"

    asyncio.run(same())


def test_the_answer() -> None:
    answer = UploadResponse(state="READY", active=True, note="why")
    answer.model.id, answer.model.version, answer.model.size_bytes = "iris", "3", 5.0
    answer.info.inputs.add(name="X", dtype=1, shape=[-1, 4], datatype="FP32")
    said = uploaded(answer, "mine")
    assert (said.model, said.version, said.size_bytes, said.request_id) == ("iris", "3", 5, "mine")
    assert isinstance(said.size_bytes, int)
    assert (said.inputs[0].shape, said.outputs, said.active, said.note) == ((-1, 4), (), True, "why")
