"""`ask`: one inference by the blocking and by the asyncio client."""

import asyncio
from typing import Any

import pytest

from nexus_grpc.client import AsyncClient, Client, InferResult
from tests.unit.client.scripted import Ask


def ask_blocking(address: str, timeout_s: float | None = 5.0, request_id: str = "", **settings: Any) -> InferResult:
    with Client(address, **settings) as client:
        return client.infer("m", {}, timeout_s=timeout_s, request_id=request_id)


def ask_asyncio(address: str, timeout_s: float | None = 5.0, request_id: str = "", **settings: Any) -> InferResult:
    async def run() -> InferResult:
        async with AsyncClient(address, **settings) as client:
            return await client.infer("m", {}, timeout_s=timeout_s, request_id=request_id)

    return asyncio.run(run())


@pytest.fixture(params=[ask_blocking, ask_asyncio], ids=["blocking", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """ask(address, timeout_s, request_id, **client settings) → InferResult"""
    return request.param  # type: ignore[no-any-return]
