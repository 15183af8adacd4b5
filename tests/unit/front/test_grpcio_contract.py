"""What the fast transport relies on of grpcio's inside: that it is there, and that its absence is noticed."""

from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from nexus_grpc.front import grpcio_contract
from nexus_grpc.front.grpcio_contract import contract_mismatches


def test_the_installed_grpcio_is_as_expected() -> None:
    assert contract_mismatches() == []


class Lacking:
    """A module or class with some of its names gone."""

    def __init__(self, whole: Any, *missing: str) -> None:
        self._whole = whole
        self._missing = missing

    def __getattr__(self, name: str) -> Any:
        if name in self._missing:
            raise AttributeError(name)
        return getattr(self._whole, name)


@pytest.mark.parametrize("name", sorted(grpcio_contract._NAMES))
def test_a_missing_name_is_reported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpcio_contract, "cygrpc", Lacking(grpcio_contract.cygrpc, name))
    assert contract_mismatches() == [f"grpc._cython.cygrpc has no {name}"]


MEMBERS = [(name, member) for name, members in grpcio_contract._NAMES.items() for member in members]


@pytest.mark.parametrize(("name", "member"), MEMBERS)
def test_a_missing_member_is_reported(name: str, member: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = grpcio_contract.cygrpc
    other = Lacking(whole)
    other.__dict__[name] = Lacking(getattr(whole, name), member)
    monkeypatch.setattr(grpcio_contract, "cygrpc", other)
    assert contract_mismatches() == [f"cygrpc.{name} has no {member}"]


@pytest.mark.parametrize("name", sorted(grpcio_contract._SERVER_FUNCTIONS))
def test_a_missing_server_function_is_reported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(grpcio_contract.server, name)
    [line] = contract_mismatches()
    assert name in line


@pytest.mark.parametrize("name", grpcio_contract._SERVER_NAMES)
def test_a_missing_server_name_is_reported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(grpcio_contract.server, name)
    assert f"grpc._server has no {name}" in contract_mismatches()


@pytest.mark.parametrize("name", grpcio_contract._STATE_NAMES)
def test_a_missing_part_of_a_calls_state_is_reported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def without() -> Any:
        state = made()
        del state.__dict__[name]
        return state

    made = grpcio_contract.server._RPCState
    monkeypatch.setattr(grpcio_contract.server, "_RPCState", without)
    assert f"grpc._server._RPCState has no {name}" in contract_mismatches()


@pytest.mark.parametrize("name", sorted(grpcio_contract._SUBMITTING))
def test_calls_that_are_submitted_otherwise_are_reported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_an_event(event: Any, state: Any, handler: Any, pool: Any) -> None:
        handle(event, state, handler, SimpleNamespace(submit=lambda *work: pool.submit(*work[:2], None, *work[3:])))

    handle = getattr(grpcio_contract.server, name)
    monkeypatch.setattr(grpcio_contract.server, name, without_an_event)
    assert contract_mismatches() == [f"grpc._server.{name} submits something else"]
    monkeypatch.setattr(grpcio_contract.server, name, lambda *_: None)
    [line] = contract_mismatches()
    assert "cannot submit" in line


def test_another_wait_for_the_message_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def unary(rpc_event: Any, state: Any, request_deserializer: Any) -> Any:
        return lambda: None

    monkeypatch.setattr(grpcio_contract.server, "_unary_request", unary)
    assert len(contract_mismatches()) == 2


def test_another_constructor_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(self: Any, surprise: int) -> None: ...

    monkeypatch.setattr(grpcio_contract.server._Server, "__init__", other)
    assert any("surprise" in line for line in contract_mismatches())


@pytest.mark.parametrize("version", ["1.84.0", "1.86.0", "2.0.0", "1.86.0.dev0", "weird"])
def test_a_version_outside_the_tried_range_is_reported(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc, "__version__", version)
    [line] = contract_mismatches()
    assert version in line


def test_a_grpcio_without_these_modules_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpcio_contract, "_import_error", "no module named grpc._cython")
    assert contract_mismatches() == ["grpcio's internals cannot be imported: no module named grpc._cython"]
