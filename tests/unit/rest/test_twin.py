"""nexus_grpc/rest/twin.py: the descriptors that Envoy's transcoder works by."""

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from nexus_grpc.rest.http_rules import Binding, HttpMethod, http_methods
from nexus_grpc.rest.twin import BODY_FIELD, SERVICE, descriptor_set, path_of


@pytest.fixture(scope="module")
def pool() -> descriptor_pool.DescriptorPool:
    """Refuses files whose imports are missing or stand later, as Envoy does."""
    filled = descriptor_pool.DescriptorPool()
    for file in descriptor_set().file:
        filled.AddSerializedFile(file.SerializeToString())
    return filled


def test_each_method_has_its_twin(pool: descriptor_pool.DescriptorPool) -> None:
    twins = pool.FindServiceByName(SERVICE).methods
    assert [twin.name for twin in twins] == [method.name for method in http_methods()]
    assert {twin.output_type.full_name for twin in twins} == {"google.api.HttpBody"}
    assert path_of("ModelsList") == "/nexus.http.v1.Http/ModelsList"


def test_the_rules_are_the_same_but_for_the_body(pool: descriptor_pool.DescriptorPool) -> None:
    options = descriptor_pb2.MethodOptions.FromString(
        pool.FindServiceByName(SERVICE).methods_by_name["RestV2Infer"].GetOptions().SerializeToString()
    )
    rule = options.Extensions[annotations_pb2.http]
    assert (rule.post, rule.body) == ("/v2/models/{model_name}/infer", "body")
    (other,) = rule.additional_bindings
    assert (other.post, other.body) == ("/v2/models/{model_name}/versions/{model_version}/infer", "body")


def test_what_comes_in_pieces_is_a_stream_of_bodies(pool: descriptor_pool.DescriptorPool) -> None:
    upload = pool.FindServiceByName(SERVICE).methods_by_name["ModelsUpload"]
    assert (upload.client_streaming, upload.input_type.full_name) == (True, "google.api.HttpBody")
    options = descriptor_pb2.MethodOptions.FromString(upload.GetOptions().SerializeToString())
    rule = options.Extensions[annotations_pb2.http]
    assert (rule.post, rule.body) == ("/models/upload", "*")


def test_requests_have_the_parameters_first_and_the_body_in_field_15(pool: descriptor_pool.DescriptorPool) -> None:
    fields = {
        name: {field.name: field.number for field in pool.FindMessageTypeByName(f"nexus.http.v1.{name}Request").fields}
        for name in ("RestV2Infer", "ModelsInfo", "InferencePredict", "SystemHealth")
    }
    assert fields == {
        "RestV2Infer": {"model_name": 1, "model_version": 2, "body": BODY_FIELD},
        "ModelsInfo": {"id": 1},
        "InferencePredict": {"body": BODY_FIELD},
        "SystemHealth": {},
    }
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("nexus.http.v1.RestV2InferRequest"))
    assert message(model_name="iris").SerializeToString() == b"\x0a\x04iris"


def test_rendering_is_reproducible() -> None:
    assert descriptor_set().SerializeToString(deterministic=True) == descriptor_set().SerializeToString(
        deterministic=True
    )


def test_more_parameters_than_there_is_room_for_are_refused() -> None:
    many = HttpMethod("Many", (Binding("GET", "/x"),), tuple(f"p{number}" for number in range(15)), False)
    with pytest.raises(ValueError, match="more than 14"):
        descriptor_set([many])
