"""Make nexus_grpc/rest/www/openapi.json from proto/.

    python tools/openapi.py [--out FILE]

The generator is protoc-gen-connect-openapi, pinned in tools/openapi-generator/go.mod and built by `make tools`: it
reads the google.api.http annotations and the comments of the protos. What protos cannot say is added here from
tools/openapi.yaml: info, credentials, error answers, examples, required fields, and /metrics, which no proto describes.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from typing import Any

import grpc_tools
import yaml
from google.api import http_pb2
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROTO_ROOT = ROOT / "proto"
SOURCES = ("nexus/v1",)
PLUGIN = ROOT / ".tools" / "bin" / "protoc-gen-connect-openapi"
EXTRAS = ROOT / "tools" / "openapi.yaml"
OUT = ROOT / "nexus_grpc" / "rest" / "www" / "openapi.json"
OPTIONS = (
    "path=openapi.json",
    "format=json",
    "features=google.api.http",
    "content-types=json",
    "with-proto-names",
    "short-service-tags",
    "short-operation-ids",
)
SCHEMA_PREFIX = "#/components/schemas/"
JSON_TYPE = "application/json"
FORM_TYPE = "multipart/form-data"
PACKAGES = ("nexus.v1.", "google.protobuf.")
# Under it errors are a text alone, and null is as good as nothing.
V2_PREFIX = "/v2"
METHODS = ("get", "post", "put", "patch", "delete")
# Whose operations change the server, where they are no GETs.
CHANGING_TAGS = {"Keys", "Models", "Traffic", "System", "V2Admin"}

Document = dict[str, Any]


class GeneratorFailed(Exception):
    """protoc or its plugin failed; what they said is on standard error."""


def generate(plugin: pathlib.Path = PLUGIN) -> Document:
    """What the plugin makes of proto/. Raises GeneratorFailed."""
    sources = sorted(
        str(path.relative_to(PROTO_ROOT)) for folder in SOURCES for path in (PROTO_ROOT / folder).glob("*.proto")
    )
    common = pathlib.Path(http_pb2.__file__).parents[2]
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["protoc", f"-I{PROTO_ROOT}", f"-I{common}", f"-I{well_known}"]
        arguments += [f"--plugin=protoc-gen-connect-openapi={plugin}", f"--connect-openapi_out={folder}"]
        arguments += [f"--connect-openapi_opt={','.join(OPTIONS)}", *sources]
        if protoc.main(arguments) != 0:
            raise GeneratorFailed
        document: Document = json.loads((pathlib.Path(folder) / "openapi.json").read_text())
    return document


def finish(document: Document, extras: Document, version: str) -> Document:
    """The plugin's document, completed from openapi.yaml. Changes it; returns the result."""
    document["security"] = extras["security"]
    document["info"] = {**extras["info"], "version": version}
    tags = [{**tag, **extras["tags"].get(tag["name"], {})} for tag in document["tags"]]
    document["tags"] = [*tags, *extras["more_tags"]]
    document["paths"].update(extras["paths"])
    _leave_out(document["paths"], extras["left_out"])
    components = document["components"]
    components["schemas"].update(extras["schemas"])
    components["responses"] = {status: _error_response(text, "Error") for status, text in extras["errors"].items()}
    components["responses"] |= {
        f"v2-{status}": _error_response(text, "V2Error") for status, text in extras["errors"].items()
    }
    components["headers"] = extras["headers"]
    components["securitySchemes"] = extras["security_schemes"]
    document = _short_names(document)
    for path, method, operation in operations(document):
        _complete_operation(operation, f"{method.upper()} {path}", extras)
    _replace_fields(document, extras["fields"])
    _require_fields(document, extras["required"])
    _mark_optional_bodies(document)
    _drop_path_fields(document)
    _allow_nulls(document)
    _drop_titles(document["components"]["schemas"])
    wanted = _reachable(document, {**document, "components": {**document["components"], "schemas": {}}})
    schemas = document["components"]["schemas"]
    document["components"]["schemas"] = {name: schema for name, schema in schemas.items() if name in wanted}
    return document


def operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    """(path, method, operation) of everything the document describes."""
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def _complete_operation(operation: Document, name: str, extras: Document) -> None:
    for parameter in operation.get("parameters", []):
        parameter.update(extras["parameters"].get(name, {}).get(parameter["name"], {}))
    if name in extras["forms"]:
        operation["requestBody"] = {"content": {FORM_TYPE: extras["forms"][name]}, "required": True}
    if name in extras["requests"]:
        operation["requestBody"]["content"][JSON_TYPE]["examples"] = extras["requests"][name]
    operation["responses"]["200"]["headers"] = {"x-request-id": {"$ref": "#/components/headers/x-request-id"}}
    if name in extras["created"]:
        operation["responses"]["201"] = operation["responses"].pop("200")
    if name in extras["open"]:
        operation["security"] = []
    for rule in extras["error_rules"]:
        if _applies(rule, name, operation, extras["open"]):
            for status in rule["statuses"]:
                shape = f"v2-{status}" if name.partition(" ")[2].startswith(V2_PREFIX) else status
                operation["responses"][status] = {"$ref": f"#/components/responses/{shape}"}
    operation["responses"] = dict(sorted(operation["responses"].items()))


def _leave_out(paths: Document, names: list[str]) -> None:
    """Operations that are there to refuse, by name."""
    for name in names:
        method, path = name.split()
        paths.get(path, {}).pop(method.lower(), None)
        if not paths.get(path, True):
            del paths[path]


def _applies(rule: Document, name: str, operation: Document, open_to_all: list[str]) -> bool:
    """Whether an error rule of openapi.yaml speaks of this operation."""
    match rule["for"]:
        case "all":
            return True
        case "closed":
            return name not in open_to_all
        case "bodies":
            return "requestBody" in operation
        case "paths":
            return "{" in name
        case "changes":
            return bool(CHANGING_TAGS & set(operation["tags"])) and not name.startswith("GET ")
        case list(names):
            return name in names
    raise ValueError(
        f"error_rules: `for` must be all, closed, bodies, paths, changes or a list of operations, not {rule['for']!r}"
    )


def _error_response(description: str, schema: str) -> Document:
    return {
        "description": description,
        "headers": {"x-request-id": {"$ref": "#/components/headers/x-request-id"}},
        "content": {"application/json": {"schema": {"$ref": f"{SCHEMA_PREFIX}{schema}"}}},
    }


def _short_names(document: Document) -> Document:
    """`nexus.v1.PredictRequest` becomes `PredictRequest`: generated clients get readable names."""
    text = json.dumps(document)
    for package in PACKAGES:
        text = text.replace(f'"{SCHEMA_PREFIX}{package}', f'"{SCHEMA_PREFIX}').replace(f'"{package}', '"')
    shortened: Document = json.loads(text)
    shortened["components"]["schemas"] = dict(sorted(shortened["components"]["schemas"].items()))
    return shortened


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if str(value.get("$ref", "")).startswith(SCHEMA_PREFIX):
            yield value["$ref"].removeprefix(SCHEMA_PREFIX)
        for inner in value.values():
            yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _reachable(document: Document, start: Any) -> set[str]:
    """The names of all schemas that `start` refers to, and those that they refer to."""
    wanted = set(_references(start))
    queue = list(wanted)
    while queue:
        for name in set(_references(document["components"]["schemas"][queue.pop()])) - wanted:
            wanted.add(name)
            queue.append(name)
    return wanted


def _replace_fields(document: Document, fields: dict[str, Document]) -> None:
    """Schemas of fields whose JSON may be more than their message's type says; their descriptions stay."""
    for message, replaced in fields.items():
        properties = document["components"]["schemas"][message]["properties"]
        for name, schema in replaced.items():
            description = properties.get(name, {}).get("description")
            properties[name] = {**schema, **({"description": description} if description else {})}


def _require_fields(document: Document, required: dict[str, list[str]]) -> None:
    """Requests must have what openapi.yaml says; answers have all fields, even empty ones, but not all messages."""
    answers = [
        operation["responses"].get("200") or operation["responses"]["201"] for _, _, operation in operations(document)
    ]
    schemas = document["components"]["schemas"]
    for name in _reachable(document, answers):
        always = [field for field, schema in schemas[name].get("properties", {}).items() if "$ref" not in schema]
        if always:
            schemas[name]["required"] = always
    for name, fields in required.items():
        schemas[name].pop("required", None)
        if fields:
            schemas[name]["required"] = fields


def _mark_optional_bodies(document: Document) -> None:
    """Where no field is required, no body is needed."""
    for _, _, operation in operations(document):
        body = operation.get("requestBody", {})
        for content in body.get("content", {}).values():
            schema = content["schema"]
            for name in _references(schema) if "$ref" in schema else ():
                schema = document["components"]["schemas"][name]
            body["required"] = bool(schema.get("required"))


def _drop_path_fields(document: Document) -> None:
    """What stands in the path is not in the body as well."""
    for _, _, operation in operations(document):
        in_path = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path"}
        for name in _references(operation.get("requestBody")):
            for field in in_path:
                document["components"]["schemas"][name].get("properties", {}).pop(field, None)


def _allow_nulls(document: Document) -> None:
    """Of what a request under /v2 need not have."""
    schemas = document["components"]["schemas"]
    for path, _, operation in operations(document):
        if path.startswith(V2_PREFIX) and "requestBody" in operation:
            body = operation["requestBody"]["content"][JSON_TYPE]["schema"]
            for schema in (body, *(schemas[name] for name in _references(body))):
                for name, field in schema.get("properties", {}).items():
                    if name not in schema.get("required", ()):
                        schema["properties"][name] = _or_null(field)


def _or_null(field: Document) -> Document:
    if "$ref" in field:
        kept = {key: value for key, value in field.items() if key != "$ref"}
        return {**kept, "anyOf": [{"$ref": field["$ref"]}, {"type": "null"}]}
    return {**field, "type": [field["type"], "null"]} if isinstance(field.get("type"), str) else field


def _drop_titles(schemas: Document) -> None:
    """A property's title repeats its name."""
    for schema in schemas.values():
        for name, field in schema.get("properties", {}).items():
            if field.get("title") == name:
                del field["title"]


def project_version() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def rendered(plugin: pathlib.Path = PLUGIN) -> str:
    """The text of openapi.json. Raises GeneratorFailed."""
    extras = yaml.safe_load(EXTRAS.read_text())
    return json.dumps(finish(generate(plugin), extras, project_version()), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=OUT)
    out = parser.parse_args().out
    if not PLUGIN.exists():
        raise SystemExit(f"{PLUGIN} is missing: run `make tools` (needs Go)")
    try:
        out.write_text(rendered())
    except GeneratorFailed:
        raise SystemExit("protoc failed; see the lines above") from None
    print(f"{out} written", file=sys.stderr)


if __name__ == "__main__":
    main()
