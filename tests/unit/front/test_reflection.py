"""Reflection's v1 file and its pool."""

import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from nexus_grpc.front.reflection import V1, V1_SERVICE, V1ALPHA, _SymbolPool, _v1_file


def test_v1_is_v1alpha_in_another_package() -> None:
    file = descriptor_pb2.FileDescriptorProto.FromString(_v1_file())
    alpha = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
    assert file.package == V1
    assert file.name != alpha.name
    assert V1ALPHA not in str(file)
    assert [message.name for message in file.message_type] == [message.name for message in alpha.message_type]
    for ours, theirs in zip(file.message_type, alpha.message_type, strict=True):
        assert [(f.name, f.number, f.type) for f in ours.field] == [(f.name, f.number, f.type) for f in theirs.field]
    [method] = file.service[0].method
    assert method.input_type == f".{V1}.ServerReflectionRequest"
    assert (method.client_streaming, method.server_streaming) == (True, True)


def test_it_is_a_file_that_a_pool_accepts() -> None:
    from google.protobuf import descriptor_pool

    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(_v1_file())
    assert pool.FindServiceByName(V1_SERVICE).full_name == V1_SERVICE


def test_methods_are_found_by_their_service() -> None:
    pool = _SymbolPool()
    service = pool.FindFileContainingSymbol("nexus.v1.Inference")
    assert pool.FindFileContainingSymbol("nexus.v1.Inference.Predict").name == service.name
    with pytest.raises(KeyError):
        pool.FindFileContainingSymbol("nobody")
    with pytest.raises(KeyError):
        pool.FindFileContainingSymbol("no.such.Symbol")
