"""A model repository for every chaos test: counts_i64, and models that are slow, stuck or deadly on purpose."""

import pathlib

import pytest

from tests.chaos.models import build_repository
from tests.harness import copy_models


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return build_repository(copy_models(tmp_path_factory.mktemp("models"), "counts_i64"))
