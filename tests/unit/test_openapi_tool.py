"""tools/openapi.py: what it adds to the generator's document; the whole is in tests/integration/test_openapi.py."""

from typing import Any

import pytest
import yaml

from nexus_grpc.access.rules import OPEN, TWIN_PREFIX, required
from nexus_grpc.rest.http_rules import http_methods
from tools import openapi

EXTRAS = {**yaml.safe_load(openapi.EXTRAS.read_text()), "fields": {"Answer": {"sum": {"type": "integer"}}}}


def reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/nexus.v1.{name}"}


def generated() -> dict[str, Any]:
    """As the generator writes it: one route with a path parameter, a body and an answer; one message left over."""
    fields = {"model_name": {"type": "string", "title": "model_name"}, "inputs": {"type": "array", "items": {}}}
    answer = {"sum": {"type": "number"}, "timing": reference("Timing")}
    operation = {
        "tags": ["Rest"],
        "parameters": [{"name": "model_name", "in": "path", "required": True, "schema": {"type": "string"}}],
        "requestBody": {"content": {"application/json": {"schema": reference("V2InferRequest")}}},
        "responses": {"200": {"content": {"application/json": {"schema": reference("Answer")}}}},
    }
    return {
        "openapi": "3.1.0",
        "info": {},
        "security": [],
        "paths": {"/v2/models/{model_name}/infer": {"post": operation}},
        "components": {
            "schemas": {
                "nexus.v1.V2InferRequest": {"type": "object", "properties": fields},
                "nexus.v1.Answer": {"type": "object", "properties": answer},
                "nexus.v1.Timing": {"type": "object", "properties": {"us": {"type": "integer"}}},
                "nexus.v1.OnlyByGrpc": {"type": "object"},
            }
        },
        "tags": [{"name": "Rest"}],
    }


@pytest.fixture
def finished() -> dict[str, Any]:
    required = {"V2InferRequest": ["inputs"]}
    return openapi.finish(generated(), {**EXTRAS, "required": required}, "1.2.3")


def test_who_needs_a_credential(finished: dict[str, Any]) -> None:
    assert set(finished["components"]["securitySchemes"]) == {"apiKey", "bearer"}
    # None is a way, too: the server may ask for none.
    assert finished["security"] == [{}, {"apiKey": []}, {"bearer": []}]
    operation = finished["paths"]["/v2/models/{model_name}/infer"]["post"]
    assert {"401", "403", "429"} <= set(operation["responses"])
    assert "security" not in operation


def test_an_open_operation(finished: dict[str, Any]) -> None:
    document = generated()
    name = "POST /v2/models/{model_name}/infer"
    operation = openapi.finish(document, {**EXTRAS, "required": {}, "open": [name]}, "1")["paths"][name.split()[1]]
    assert operation["post"]["security"] == []
    assert not {"401", "403"} & set(operation["post"]["responses"])


def test_open_are_those_that_the_rules_open() -> None:
    """access/rules.py decides; the list in openapi.yaml repeats it."""
    found = [
        f"{binding.verb} {binding.template}"
        for method in http_methods()
        for binding in method.bindings
        if required(TWIN_PREFIX + method.name) == OPEN
    ]
    assert sorted(EXTRAS["open"]) == sorted(found)


def test_operations_are_completed(finished: dict[str, Any]) -> None:
    operation = finished["paths"]["/v2/models/{model_name}/infer"]["post"]
    assert operation["parameters"][0]["example"] == "two_inputs"
    assert operation["requestBody"]["content"]["application/json"]["examples"]
    assert {"400", "404", "405", "413", "415", "429", "503"} <= set(operation["responses"])
    assert list(operation["responses"]) == sorted(operation["responses"])
    assert "x-request-id" in operation["responses"]["200"]["headers"]
    assert finished["info"]["version"] == "1.2.3"
    assert "413" not in finished["paths"]["/metrics"]["get"]["responses"]


def test_schemas_are_tidied(finished: dict[str, Any]) -> None:
    schemas = finished["components"]["schemas"]
    assert {"V2InferRequest", "Answer", "Timing", "Error", "V2Error"} == set(schemas), (
        "short names, and only what REST uses"
    )
    assert list(schemas["V2InferRequest"]["properties"]) == ["inputs"], "the path has the other one"
    assert schemas["V2InferRequest"]["required"] == ["inputs"]
    assert schemas["Answer"]["required"] == ["sum"], "answers have every field but messages"


def test_a_rule_for_nobody_is_refused() -> None:
    rules = {"error_rules": [{"for": "some", "statuses": ["400"]}]}
    with pytest.raises(ValueError, match="'some'"):
        openapi.finish(generated(), {**EXTRAS, **rules, "required": {}}, "1")
