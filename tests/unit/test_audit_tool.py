"""tools/audit.py and `make sbom`: the real pip-audit, asking an advisory service of our own; the real CycloneDX."""

import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness import free_port
from tests.unit.support import ROOT
from tools import audit

LOCK = "".join(f"{name}==1.0 --hash=sha256:{'0' * 64}\n" for name in ("sound", "holey"))


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "requirements.lock"
    path.write_text(LOCK)
    return path


class Advisories:
    """An OSV service; `known` is its answer by package. https://google.github.io/osv.dev/post-v1-query/"""

    def __init__(self) -> None:
        self.known: dict[str, list[dict[str, Any]]] = {}
        advisories = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                body = json.dumps({"vulns": advisories.known.get(query["package"]["name"], [])}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/query"


@pytest.fixture
def advisories() -> Iterator[Advisories]:
    made = Advisories()
    threading.Thread(target=made.server.serve_forever, daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def run(lock: Path, url: str) -> int:
    return audit.main([str(lock), "--service", "osv", "--osv-url", url])


def test_no_known_vulnerability(lock: Path, advisories: Advisories, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lock, advisories.url) == 0
    printed = capsys.readouterr().out
    assert printed == "audit: osv knows of no vulnerability in the 2 packages of requirements.lock\n"


def test_a_known_vulnerability_fails(lock: Path, advisories: Advisories, capsys: pytest.CaptureFixture[str]) -> None:
    events = [{"introduced": "0"}, {"fixed": "1.1"}]
    affected = [
        {
            "package": {"ecosystem": "PyPI", "name": "holey"},
            "ranges": [{"type": "ECOSYSTEM", "events": events}],
            "versions": ["1.0"],
        }
    ]
    advisories.known["holey"] = [
        {"id": "PYSEC-1", "aliases": ["CVE-1"], "published": "2024-01-01T00:00:00Z", "affected": affected}
    ]
    assert run(lock, advisories.url) == 1
    assert "  holey 1.0: PYSEC-1 (CVE-1), repaired in 1.1" in capsys.readouterr().err.splitlines()


def test_nobody_to_ask_is_said_and_fails_nothing(lock: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lock, f"http://127.0.0.1:{free_port()}/v1/query") == 0
    said = capsys.readouterr().err
    assert said.startswith("audit: NOT DONE, for nobody could be asked about all packages:\n  osv: 0 of ? packages; ")
    assert "Connection refused" in said


def test_a_lock_that_cannot_be_read_fails(tmp_path: Path, advisories: Advisories) -> None:
    broken = tmp_path / "broken.lock"
    broken.write_text("no-hash==1.0\n")
    with pytest.raises(SystemExit, match="audit: pip-audit failed: "):
        run(broken, advisories.url)


def test_packages_that_a_service_does_not_know_are_not_called_sound() -> None:
    answer = audit._answer([{"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "not on PyPI"}])
    assert (answer.is_complete, answer.known, answer.asked, answer.reason) == (False, 1, 2, "not on PyPI")
    assert not audit._answer([]).is_complete


def test_the_bill_of_materials_lists_what_is_shipped(tmp_path: Path) -> None:
    recipe = re.search(r"^sbom:.*\n\t(.*\n(?:\t.*\n)*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    command = recipe[1].replace("\\\n", " ").replace("sbom.cdx.json", str(tmp_path / "sbom.json")).split()
    assert command[0] == "@$(BIN)/python"
    subprocess.run([sys.executable, *command[1:]], cwd=ROOT, check=True, capture_output=True, timeout=100)
    text = (tmp_path / "sbom.json").read_text()
    bill = json.loads(text)
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert {(each["name"], each["version"]) for each in bill["components"]} == set(pinned)
    assert bill["metadata"]["component"]["name"] == "nexus-grpc"
    # Reproducible: nothing in it says when, or for the how manieth time.
    assert "timestamp" not in bill["metadata"]
    assert "serialNumber" not in bill
