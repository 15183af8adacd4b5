"""Models that change the case of text: loaded where the system has their locale, else refused with what to do."""

import os
import pathlib
import subprocess
import uuid

import numpy as np
import pytest
from onnx import TensorProto, helper

from nexus_grpc.ipc.errors import ModelNotServable
from nexus_grpc.ipc.locales import DEFAULT_LOCALE, has_locale
from nexus_grpc.worker.session import OpenedSession, open_session
from tests.harness import CI
from tests.unit.support import Graph

SOURCES = pathlib.Path(os.environ.get("I18NPATH", "/usr/share/i18n")) / "locales" / "en_US"


def lower(folder: pathlib.Path, **attributes: str) -> OpenedSession:
    node = helper.make_node("StringNormalizer", ["s"], ["y"], case_change_action="LOWER", **attributes)
    graph = Graph([node], [("s", TensorProto.STRING, ["n"])], [("y", TensorProto.STRING, ["n"])])
    return open_session(graph.save(folder), "m", {}, 1)


@pytest.fixture
def locales(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder where the C library looks for locales, with en_US in it."""
    if not SOURCES.exists():
        (pytest.fail if CI else pytest.skip)("Debian's package locales is not installed")
    folder = tmp_path / "locales"
    folder.mkdir()
    subprocess.run(["localedef", "-i", "en_US", "-f", "UTF-8", folder / DEFAULT_LOCALE], check=True, timeout=60)
    monkeypatch.setenv("LOCPATH", str(folder))
    return folder


def test_text_is_changed_by_the_rules_of_the_locale(locales: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert has_locale(DEFAULT_LOCALE)
    opened = lower(tmp_path)
    assert opened.run({"s": np.array(["ÄB", "c"], object)}, False)[0].tolist() == ["äb", "c"]


def test_without_it_the_message_says_what_to_do(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCPATH", str(tmp_path / f"{uuid.uuid4()}"))
    assert not has_locale("fr_FR.UTF-8")
    with pytest.raises(ModelNotServable) as refused:
        lower(tmp_path, locale="fr_FR.UTF-8")
    assert refused.value.message == (
        "model 'm' cannot be loaded: it works on text by the rules of the locale fr_FR.UTF-8, which this machine does"
        " not have; on Debian: apt-get install locales && localedef -i fr_FR -f UTF-8 fr_FR.UTF-8, then restart the"
        " server"
    )
