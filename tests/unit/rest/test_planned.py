"""nexus_grpc/rest/planned.py: what is still to come."""

from nexus_grpc.rest.http_rules import http_methods
from nexus_grpc.rest.planned import PLANNED


def test_nothing_that_is_built_is_planned() -> None:
    built = {(binding.verb, binding.template) for method in http_methods() for binding in method.bindings}
    planned = [(binding.verb, binding.template) for binding, _ in PLANNED]
    assert not built & set(planned)
    assert len(planned) == len(set(planned))


def test_what_is_planned() -> None:
    assert {(binding.verb, binding.template) for binding, _ in PLANNED} == {
        ("POST", "/v1/batch"),
        ("GET", "/v1/jobs/{id}"),
        ("GET", "/admin/drift"),
    }


def test_each_says_what_is_missing() -> None:
    assert all("not built yet" in sentence for _, sentence in PLANNED)
