"""Protobuf code generated from proto/ by `python proto/build.py`, and the descriptor pool that holds it.

The pool is our own, not protobuf's default one, so that these stubs and Triton's client library, which defines the same
messages, can live in one process.
"""

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, struct_pb2

POOL = descriptor_pool.DescriptorPool()
for _module in (descriptor_pb2, http_pb2, annotations_pb2, struct_pb2):
    POOL.AddSerializedFile(_module.DESCRIPTOR.serialized_pb)
