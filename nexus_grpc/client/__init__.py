"""Python client of the gRPC port: numpy in and out, deadlines, retries, precise errors; blocking or asyncio.

    from nexus_grpc.client import Client

    with Client("127.0.0.1:8001") as client:
        answer = client.infer("iris", {"X": np.array([[5.1, 3.5, 1.4, 0.2]], np.float32)})
        print(answer["label"], answer["probabilities"])

`Client` and `AsyncClient` have the same methods; what they mean is told at `Client`.
"""

from nexus_grpc.client.aio import AsyncAnswers, AsyncClient
from nexus_grpc.client.blocking import Answers, Client
from nexus_grpc.client.connection import Tls
from nexus_grpc.client.errors import (
    AlreadyExists,
    DeadlineExceeded,
    InvalidInput,
    NexusClientError,
    NotFound,
    Overloaded,
    Unavailable,
)
from nexus_grpc.client.results import (
    BatchPrediction,
    InferResult,
    ModelInfo,
    ModelState,
    Prediction,
    RowPrediction,
    TensorInfo,
    Timing,
)
from nexus_grpc.client.retry import Retry
from nexus_grpc.client.uploads import Uploaded

__all__ = [
    "AlreadyExists",
    "Answers",
    "AsyncAnswers",
    "AsyncClient",
    "BatchPrediction",
    "Client",
    "DeadlineExceeded",
    "InferResult",
    "InvalidInput",
    "ModelInfo",
    "ModelState",
    "NexusClientError",
    "NotFound",
    "Overloaded",
    "Prediction",
    "Retry",
    "RowPrediction",
    "TensorInfo",
    "Timing",
    "Tls",
    "Unavailable",
    "Uploaded",
]
