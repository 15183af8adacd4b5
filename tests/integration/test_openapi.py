"""The OpenAPI document: made from proto/ as it stands, true to the live server, its examples working."""

import json
import pathlib
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import checks
from schemathesis.config import SchemathesisConfig

from nexus_grpc.rest.planned import PLANNED
from tests.harness import ROOT, Server, copy_models, require_tool, running_server
from tests.integration.rest import get, post
from tools import openapi

DOCUMENT = openapi.OUT
# Per operation and phase; see the durations that pytest prints. schemathesis finds its known cases deterministically,
# this bounds the random ones.
EXAMPLES_MAX = 50
# Methods that Envoy's HTTP parser knows. Any other (QUERY is schemathesis' own choice) is malformed HTTP to it: 400.
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
# Not among them: positive_data_acceptance. A schema can't say how many features a model takes.
checks.load_all_checks()
ABOUT_ANSWERS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
ABOUT_REQUESTS = ("negative_data_rejection", "unsupported_method")
MODELS = ("iris", "text_echo", "two_inputs", "all_types", "scalar", "fixed_batch")
COVERAGE = {"unexpected-methods": METHODS, "generate-duplicate-query-parameters": True}
CONFIG = SchemathesisConfig.from_dict({"seed": 1, "phases": {"coverage": COVERAGE}})
SCHEMA = schemathesis.openapi.from_path(DOCUMENT, config=CONFIG)


def document() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DOCUMENT.read_text())
    return loaded


def test_the_committed_document_is_what_proto_gives(tmp_path: pathlib.Path) -> None:
    """Run `make tools` and `.venv/bin/python tools/openapi.py` after a change in proto/."""
    require_tool(openapi.PLUGIN.name)
    made = tmp_path / "openapi.json"
    command = [sys.executable, str(ROOT / "tools" / "openapi.py"), "--out", str(made)]
    subprocess.run(command, check=True, timeout=60, cwd=ROOT)
    assert made.read_text() == DOCUMENT.read_text()


def test_the_server_hands_out_the_document(rest_server: Server) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{rest_server.rest_port}/openapi.json", timeout=10) as answer:
        assert answer.headers["content-type"] == "application/json"
        assert json.loads(answer.read()) == document()


def test_it_describes_rest_and_nothing_else() -> None:
    paths = document()["paths"]
    assert {"/predict", "/models", "/models/info", "/models/{id}", "/health", "/ready", "/metrics"} <= set(paths)
    assert not [path for path in paths if path.startswith(("/nexus.", "/inference."))]
    # Planned routes answer 501; whoever reads the document should not meet them.
    assert not {binding.template for binding, _ in PLANNED} & set(paths)
    assert {"/models/upload", "/admin/reload", "/admin/ab/status", "/v1/models/{id}"} <= set(paths)


@pytest.fixture(scope="module")
def changing_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One whose models may be changed: `iris` and `spare` with two versions."""
    folder = tmp_path_factory.mktemp("changing")
    repository = copy_models(folder / "models", *MODELS)
    make_spare(repository)
    shutil.copytree(repository / "iris" / "1", repository / "iris" / "2")
    with running_server(folder, "--model-control=none", repository=repository, rest=True) as running:
        yield running


def make_spare(repository: pathlib.Path) -> None:
    for version in ("1", "2"):
        shutil.copytree(ROOT / "models" / "iris" / "1", repository / "spare" / version, dirs_exist_ok=True)


def as_examples_expect(path: str, port: int, repository: pathlib.Path) -> None:
    """Version 1 of iris answers, with version 2 beside it, in an experiment where the example needs one; version 2 of
    `spare` answers, or nothing of it where the example removes it."""

    def change(path: str, **body: Any) -> None:
        answer = post(port, path, body)
        assert answer.status == 200, answer

    if get(port, "/admin/ab/status?model=iris").json["active"]:
        change("/admin/ab/abort", model="iris")
    for version in ("2", "1"):
        change("/v1/models/iris/activate", version=version)
    make_spare(repository)
    for version in ("1", "2"):
        change("/v1/models/spare/load", version=version)
    if path in ("/admin/ab/split", "/admin/ab/ramp", "/admin/ab/promote", "/admin/ab/abort"):
        change("/admin/ab/setup", model="iris", candidate_version="2")
    if path == "/v1/models/{id}":
        change("/v1/models/spare/unload")


def example_calls() -> list[Any]:
    """One per example: (method, path, path and query parameters, body or None)."""
    calls = []
    for path, method, operation in openapi.operations(document()):
        parameters = [one for one in operation.get("parameters", []) if "example" in one]
        where = {
            place: {one["name"]: one["example"] for one in parameters if one["in"] == place}
            for place in ("path", "query")
        }
        if path.startswith("/admin/keys"):
            continue  # tests/integration/test_keys_api.py
        content = operation.get("requestBody", {}).get("content", {})
        if "multipart/form-data" in content:
            continue  # tests/integration/test_upload.py
        body = content.get("application/json", {})
        for name, example in body.get("examples", {"": {"value": None}}).items():
            title = f"{method.upper()} {path} {name}".strip()
            calls.append(pytest.param(method, path, where, example["value"], id=title))
    return calls


@pytest.mark.parametrize(("method", "path", "where", "body"), example_calls())
def test_examples_work(method: str, path: str, where: dict[str, Any], body: Any, changing_server: Server) -> None:
    sent: dict[str, Any] = {} if body is None else {"body": body, "media_type": "application/json"}
    case = SCHEMA[path][method].Case(path_parameters=where["path"], query=where["query"], **sent)
    if path.startswith(("/admin", "/v1/models", "/v2/repository/models")):
        as_examples_expect(path, changing_server.rest_port, changing_server.log.parent / "models")
    answer = case.call(base_url=f"http://127.0.0.1:{changing_server.rest_port}")
    assert answer.status_code in (200, 201), answer.text
    case.validate_response(answer)


def test_every_body_has_an_example() -> None:
    for path, _, operation in openapi.operations(document()):
        if "requestBody" in operation:
            for content in operation["requestBody"]["content"].values():
                assert content.get("examples"), path


def named(*names: str) -> list[Any]:
    return [checks.CHECKS.get_one(name) for name in names]


def address(case: schemathesis.Case[Any], model: str) -> bool:
    """Put a served model's name where the request has one; False where it has none, or would take the model away."""
    if case.method == "DELETE" or case.path.endswith("/unload"):
        return False
    fields = [part for part in (case.body, case.path_parameters) if isinstance(part, dict)]
    places = [(part, name) for part in fields for name in ("model_id", "model_name", "model", "id") if name in part]
    for part, name in places:
        part[name] = model
    return bool(places)


@pytest.mark.timeout(180)
@SCHEMA.parametrize()
@hypothesis.settings(
    max_examples=EXAMPLES_MAX,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_no_undocumented_answer(case: schemathesis.Case[Any], changing_server: Server) -> None:
    """What schemathesis makes of the document, valid and not: no 5xx, and every answer is one that it describes."""
    url = f"http://127.0.0.1:{changing_server.rest_port}"
    case.validate_response(case.call(base_url=url, timeout=30), checks=named(*ABOUT_ANSWERS, *ABOUT_REQUESTS))
    # Invented names end at 404. The same again for a model that exists gets further in.
    if address(case, MODELS[len(repr(case.body)) % len(MODELS)]):
        case.validate_response(case.call(base_url=url, timeout=30), checks=named(*ABOUT_ANSWERS))
