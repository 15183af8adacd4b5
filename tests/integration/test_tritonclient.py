"""Triton's own Python client, unmodified."""

import asyncio
import queue
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.harness import Server
from tests.integration.graphs import reference

X = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.1, 5.6, 2.4]], np.float32)
TIMEOUT_S = 20


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:  # type: ignore[override]
    with triton.InferenceServerClient(server.address) as client:
        yield client


def inputs(kind: Any = triton.InferInput, name: str = "X", array: np.ndarray = X, datatype: str = "FP32") -> list[Any]:
    tensor = kind(name, array.shape, datatype)
    tensor.set_data_from_numpy(array)
    return [tensor]


def assert_iris(result: Any) -> None:
    expected = reference("iris", {"X": X})
    assert result.as_numpy("label").tolist() == expected["label"].tolist()
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected["probabilities"], rtol=1e-5)


def test_infer(client: triton.InferenceServerClient) -> None:
    result = client.infer("iris", inputs(), request_id="42", client_timeout=TIMEOUT_S)
    assert_iris(result)
    assert result.get_response().id == "42"
    assert result.get_response().model_version == "1"


def test_requested_outputs_and_classification(client: triton.InferenceServerClient) -> None:
    outputs = [triton.InferRequestedOutput("probabilities", class_count=2)]
    result = client.infer("iris", inputs(), outputs=outputs, client_timeout=TIMEOUT_S)
    assert result.as_numpy("label") is None
    best = [row[0].decode().split(":")[1] for row in result.as_numpy("probabilities")]
    assert [int(index) for index in best] == reference("iris", {"X": X})["label"].tolist()


def test_a_model_without_inputs(client: triton.InferenceServerClient) -> None:
    """Raw, which is all that this client reads: there is no typed input that would ask for typed output."""
    assert client.infer("noinput", []).as_numpy("y").tolist() == [1.0, 2.0]


def test_text(client: triton.InferenceServerClient) -> None:
    texts = np.array([["Grüße"], [""], ["a\0b"]], object)
    result = client.infer("text_echo", inputs(name="text", array=texts, datatype="BYTES"), client_timeout=TIMEOUT_S)
    assert [item.decode() for item in result.as_numpy("echo").ravel()] == ["Grüße", "", "a\0b"]


def test_parameters(client: triton.InferenceServerClient) -> None:
    fine = {"sequence_id": 0, "priority": 0, "timeout": 20_000_000, "parameters": {"mine": "x"}}
    assert_iris(client.infer("iris", inputs(), client_timeout=TIMEOUT_S, **fine))
    timing = client.infer("iris", inputs(), parameters={"nexus_timing": True}, client_timeout=TIMEOUT_S).get_response()
    assert timing.parameters["nexus_batch_size"].int64_param >= 2
    for sent in ({"sequence_id": 3, "sequence_start": True}, {"sequence_id": "a"}, {"priority": 1}):
        with pytest.raises(InferenceServerException, match=next(iter(sent))):
            client.infer("iris", inputs(), client_timeout=TIMEOUT_S, **sent)


def test_async_infer(client: triton.InferenceServerClient) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    for _ in range(20):
        client.async_infer(
            "iris", inputs(), lambda result, error: answers.put((result, error)), client_timeout=TIMEOUT_S
        )
    for _ in range(20):
        result, error = answers.get(timeout=TIMEOUT_S)
        assert error is None
        assert_iris(result)


def test_errors_have_tritons_words(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="Request for unknown model: 'nothing' is not found") as caught:
        client.infer("nothing", inputs(), client_timeout=TIMEOUT_S)
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_stream(client: triton.InferenceServerClient) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)), stream_timeout=TIMEOUT_S)
    try:
        for number in range(30):
            model = "nothing" if number == 10 else "iris"
            client.async_stream_infer(model, inputs(), request_id=str(number), enable_empty_final_response=True)
        for number in range(30):
            result, error = answers.get(timeout=TIMEOUT_S)
            if number == 10:
                assert "unknown model: 'nothing'" in str(error)
            else:
                assert error is None
                assert result.get_response().id == str(number)
                assert result.get_response().parameters["triton_final_response"].bool_param
                assert_iris(result)
        client.async_stream_infer("iris", inputs())
        result, error = answers.get(timeout=TIMEOUT_S)
        assert error is None
        assert "triton_final_response" not in result.get_response().parameters
    finally:
        client.stop_stream()


def test_aio(server: Server) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(server.address) as client:
            assert await client.is_server_ready()
            calls = [
                client.infer("iris", inputs(triton_aio.InferInput), client_timeout=TIMEOUT_S, request_id=str(number))
                for number in range(20)
            ]
            for number, result in enumerate(await asyncio.gather(*calls)):
                assert result.get_response().id == str(number)
                assert_iris(result)

            async def requests() -> Any:
                for number in range(10):
                    yield {"model_name": "iris", "inputs": inputs(triton_aio.InferInput), "request_id": str(number)}

            seen = 0
            async for result, error in client.stream_infer(requests(), stream_timeout=TIMEOUT_S):
                assert error is None
                assert result.get_response().id == str(seen)
                seen += 1
            assert seen == 10

    asyncio.run(asyncio.wait_for(ask(), 40))


def test_readiness(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live(client_timeout=TIMEOUT_S)
    assert client.is_server_ready(client_timeout=TIMEOUT_S)
    assert client.is_model_ready("iris", client_timeout=TIMEOUT_S)
    assert client.is_model_ready("iris", "1", client_timeout=TIMEOUT_S)
    assert not client.is_model_ready("iris", "2", client_timeout=TIMEOUT_S)
    assert not client.is_model_ready("nothing", client_timeout=TIMEOUT_S)


def test_metadata_and_configuration(client: triton.InferenceServerClient) -> None:
    server = client.get_server_metadata(as_json=True, client_timeout=TIMEOUT_S)
    assert server["name"] == "nexus-grpc"
    assert "statistics" in server["extensions"]
    metadata = client.get_model_metadata("digits_cnn", as_json=True, client_timeout=TIMEOUT_S)
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": ["-1", "1", "8", "8"]}]
    assert metadata["versions"] == ["1"]
    config = client.get_model_config("digits_cnn", as_json=True, client_timeout=TIMEOUT_S)["config"]
    assert config["max_batch_size"] == 32
    assert config["input"][0]["dims"] == ["1", "8", "8"]
    assert config["output"][1]["label_filename"] == "labels.txt"
    assert client.get_model_config("iris", as_json=True, client_timeout=TIMEOUT_S)["config"]["max_batch_size"] == 1024
    assert client.get_model_metadata("scale", client_timeout=TIMEOUT_S).versions == ["1", "2"]
    with pytest.raises(InferenceServerException, match="nothing"):
        client.get_model_config("nothing", client_timeout=TIMEOUT_S)


def test_repository_index(client: triton.InferenceServerClient) -> None:
    index = client.get_model_repository_index(client_timeout=TIMEOUT_S).models
    states = {(model.name, model.version): model.state for model in index}
    assert states[("iris", "1")] == states[("scale", "2")] == "READY"


def test_statistics_grow(client: triton.InferenceServerClient) -> None:
    def now() -> Any:
        """Statistics once they stand still: an answer is counted just after it is sent."""
        last = None
        while (stats := client.get_inference_statistics("iris", client_timeout=TIMEOUT_S).model_stats[0]) != last:
            last = stats
            time.sleep(0.2)
        return stats

    before = now()
    for _ in range(5):
        client.infer("iris", inputs(), client_timeout=TIMEOUT_S)
    after = now()
    assert after.inference_count - before.inference_count == 10
    assert after.execution_count - before.execution_count == 5
    for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        one, other = getattr(before.inference_stats, part), getattr(after.inference_stats, part)
        assert other.count - one.count == 5, part
        assert other.ns > one.ns, part
    with pytest.raises(InferenceServerException):
        client.infer("iris", inputs(array=X[:, :3].copy()), client_timeout=TIMEOUT_S)
    assert now().inference_stats.fail.count - after.inference_stats.fail.count == 1
    assert now().last_inference >= before.last_inference > 1.6e12 or before.last_inference == 0
    everything = client.get_inference_statistics(client_timeout=TIMEOUT_S).model_stats
    assert {"iris", "scale", "scalar"} <= {stats.name for stats in everything}


def test_what_is_not_offered(client: triton.InferenceServerClient) -> None:
    client.unregister_system_shared_memory(client_timeout=TIMEOUT_S)
    client.unregister_cuda_shared_memory(client_timeout=TIMEOUT_S)
    with pytest.raises(InferenceServerException, match="shared memory"):
        client.register_system_shared_memory("r", "/r", 16, client_timeout=TIMEOUT_S)
    with pytest.raises(InferenceServerException, match="shared memory"):
        client.register_cuda_shared_memory("r", b"eHg=", 0, 16, client_timeout=TIMEOUT_S)
    assert not client.get_system_shared_memory_status(client_timeout=TIMEOUT_S).regions
    assert not client.get_cuda_shared_memory_status(client_timeout=TIMEOUT_S).regions
    with pytest.raises(InferenceServerException, match="shared memory region: 'r'"):
        client.get_system_shared_memory_status("r", client_timeout=TIMEOUT_S)


def test_settings_are_told_and_not_changed(client: triton.InferenceServerClient) -> None:
    traced = client.get_trace_settings("iris", client_timeout=TIMEOUT_S)
    assert list(traced.settings["trace_level"].value) == ["OFF"]
    same = {"trace_level": "OFF", "trace_rate": None}
    assert client.update_trace_settings(settings=same, client_timeout=TIMEOUT_S) == traced
    with pytest.raises(InferenceServerException, match="trace setting 'trace_level' cannot be TIMESTAMPS"):
        client.update_trace_settings(settings={"trace_level": "TIMESTAMPS"}, client_timeout=TIMEOUT_S)
    logged = client.get_log_settings(client_timeout=TIMEOUT_S)
    assert logged.settings["log_error"].bool_param
    assert client.update_log_settings({"log_error": True}, client_timeout=TIMEOUT_S) == logged
    with pytest.raises(InferenceServerException, match="log setting 'log_verbose_level' cannot be 1"):
        client.update_log_settings({"log_verbose_level": 1}, client_timeout=TIMEOUT_S)
