"""The hot methods' paths, and what both transports read off a call."""

import re
import time
from collections.abc import Iterable

from nexus_grpc.front.request_ids import RequestIds
from nexus_grpc.ipc.errors import TooLarge
from nexus_grpc.ipc.record import REQUEST_ID_MAX_BYTES, Method
from nexus_grpc.rest.twin import path_of

INFERENCE_SERVICE = "inference.GRPCInferenceService"
NEXUS_SERVICE = "nexus.v1.Inference"
PATHS = {
    Method.MODEL_INFER: f"/{INFERENCE_SERVICE}/ModelInfer",
    Method.MODEL_STREAM_INFER: f"/{INFERENCE_SERVICE}/ModelStreamInfer",
    Method.PREDICT: f"/{NEXUS_SERVICE}/Predict",
    Method.BATCH_PREDICT: f"/{NEXUS_SERVICE}/BatchPredict",
    Method.PREDICT_STREAM: f"/{NEXUS_SERVICE}/PredictStream",
    Method.HTTP_PREDICT: path_of("InferencePredict"),
    Method.HTTP_API_PREDICT: path_of("RestApiPredict"),
    Method.HTTP_API_BATCH_PREDICT: path_of("RestApiBatchPredict"),
    Method.HTTP_V1_INFER: path_of("RestInfer"),
    Method.HTTP_V2_INFER: path_of("RestV2Infer"),
}
# The core reports "no deadline" as a time centuries away.
NO_DEADLINE_SECONDS = 1e8
STREAMING = frozenset({Method.MODEL_STREAM_INFER, Method.PREDICT_STREAM})

# All names and values of a call; the core counts 32 bytes more for each. Envoy passes 24 KiB on, and what it adds.
METADATA_MAX_BYTES = 32 << 10

REQUEST_ID_KEY = "x-request-id"
# What a client of the Open Inference Protocol says of its body, and of the answer that it takes; as fields of the hot
# request (http_calls.py).
V2_HEADERS = {"inference-header-content-length": 3, "content-encoding": 4, "accept-encoding": 5}
# Tells Envoy the HTTP status of an answer by HttpBody, which is always gRPC OK (envoy/bootstrap.yaml).
HTTP_STATUS_KEY = "x-nexus-http-status"
# Printable, no spaces or quotes: safe in a header, a log line and a shell.
_WELL_FORMED = re.compile(rf"[A-Za-z0-9._:/+=@-]{{1,{REQUEST_ID_MAX_BYTES}}}").fullmatch


def request_id_of(metadata: Iterable[tuple[str, str | bytes]], ids: RequestIds) -> bytes:
    """The call's x-request-id when it is well-formed, else a new one."""
    for key, value in metadata:
        if key == REQUEST_ID_KEY and isinstance(value, str) and _WELL_FORMED(value):
            return value.encode()
    return ids.next()


def check_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Raises TooLarge. The core refuses larger metadata by itself, but not before the client has acknowledged the
    server's settings: until then it takes 16 MiB, and keeps them for as long as the call is open.
    """
    size = 0
    for key, value in metadata:
        size += len(key) + len(value)
    if size > METADATA_MAX_BYTES:
        raise TooLarge(f"the metadata has {size} bytes; expected at most {METADATA_MAX_BYTES}")


def monotonic_deadline_ns(deadline: float | None, now_ns: int) -> int:
    """gRPC gives deadlines in wall-clock seconds; 0 = none. Both clocks are read now: later clock jumps do no harm."""
    remaining = NO_DEADLINE_SECONDS if deadline is None else deadline - time.time()
    if not remaining < NO_DEADLINE_SECONDS:
        return 0
    return max(1, now_ns + int(max(remaining, -1.0) * 1e9))
