"""Names of models that are being made: of two that differ by case only, one is first."""

import pytest

from nexus_grpc.ipc.errors import AlreadyExists
from nexus_grpc.supervisor.name_claims import NameClaims


def test_a_name_that_a_model_has() -> None:
    claims = NameClaims(lambda: {"iris"})
    claims.check("iris")
    claims.check("wine")
    with pytest.raises(AlreadyExists) as failure:
        claims.check("Iris")
    assert (failure.value.reason, failure.value.field) == ("NAME_TAKEN", "id")
    assert failure.value.message == (
        "the name 'Iris' differs from the model 'iris' by case only; give it another name, or delete 'iris' first"
    )


def test_a_name_that_somebody_is_about_to_use() -> None:
    claims = NameClaims(set)
    with claims.claim("Iris"), claims.claim("Iris"):
        with pytest.raises(AlreadyExists), claims.claim("iris"):
            raise AssertionError("unreachable")
        with claims.claim("wine"):
            pass
    with claims.claim("iris"):
        pass


def test_a_claim_ends_with_its_work() -> None:
    claims = NameClaims(set)
    with pytest.raises(ValueError, match="disk"), claims.claim("Iris"):
        raise ValueError("disk")
    claims.check("iris")


def test_models_that_were_there_before_the_rule_stay() -> None:
    claims = NameClaims(lambda: {"iris", "Iris"})
    claims.check("iris")
    claims.check("Iris")
