"""Triton's own Python client by HTTP, unmodified: every method of it, and binary tensors both ways."""

import asyncio
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from nexus_grpc.rest.http_rules import http_methods
from tests.harness import Server, copy_models, running_server
from tests.integration.graphs import reference
from tests.integration.rest import get, post

X = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.1, 5.6, 2.4]], np.float32)
CODINGS = (None, "gzip", "deflate")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose models may be changed."""
    folder = tmp_path_factory.mktemp("triton-http")
    repository = copy_models(folder / "models", "iris", "all_types", "text_echo", "two_inputs", "digits_cnn")
    with running_server(folder, "--workers=1", repository=repository, rest=True) as running:
        yield running


@pytest.fixture(scope="module")
def client(site: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{site.rest_port}", network_timeout=20) as client:
        yield client


def given(name: str, array: np.ndarray, datatype: str, binary: bool = True, kind: Any = triton.InferInput) -> Any:
    made = kind(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def assert_iris(result: Any) -> None:
    expected = reference("iris", {"X": X})
    assert result.as_numpy("label").tolist() == expected["label"].tolist()
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected["probabilities"], rtol=1e-5)


def refused(call: Callable[[], Any]) -> tuple[str, str]:
    """(status, message) of what the client raises."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    return str(caught.value.status()), str(caught.value.message())


# --- what the client's methods are, so that a new one is not forgotten ---

CALLED = {
    "is_server_live",
    "is_server_ready",
    "is_model_ready",
    "get_server_metadata",
    "get_model_metadata",
    "get_model_config",
    "get_model_repository_index",
    "load_model",
    "unload_model",
    "get_inference_statistics",
    "update_trace_settings",
    "get_trace_settings",
    "update_log_settings",
    "get_log_settings",
    "get_system_shared_memory_status",
    "register_system_shared_memory",
    "unregister_system_shared_memory",
    "get_cuda_shared_memory_status",
    "register_cuda_shared_memory",
    "unregister_cuda_shared_memory",
    "infer",
    "async_infer",
}
# Of the client alone.
LOCAL = {"close", "generate_request_body", "parse_response_body", "plugin", "register_plugin", "unregister_plugin"}


def test_all_of_its_methods_are_called_here() -> None:
    public = {name for name in dir(triton.InferenceServerClient) if not name.startswith("_")}
    assert public <= CALLED | LOCAL


def test_readiness_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("iris")
    assert client.is_model_ready("iris", "1")
    assert not client.is_model_ready("iris", "2")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata()["name"] == "nexus-grpc"
    metadata = client.get_model_metadata("digits_cnn", "1")
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    config = client.get_model_config("digits_cnn")
    assert config["max_batch_size"] == 32
    assert config["input"][0]["dims"] == [1, 8, 8]
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert client.get_model_config("digits_cnn", "1") == config
    for call in (client.get_model_metadata, client.get_model_config, client.get_inference_statistics):
        assert refused(lambda call=call: call("nothing")) == (
            "404",
            "Request for unknown model: 'nothing' is not found",
        )


def test_what_is_announced_is_there(client: triton.InferenceServerClient) -> None:
    announced = set(client.get_server_metadata()["extensions"])
    assert announced >= {
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "model_repository",
        "statistics",
    }
    # These are only told of, or not there at all.
    assert not announced & {"system_shared_memory", "cuda_shared_memory", "sequence", "trace", "logging"}


def test_the_repository(client: triton.InferenceServerClient) -> None:
    index = client.get_model_repository_index()
    assert {"name": "iris", "version": "1", "state": "READY", "reason": ""} in index
    client.unload_model("two_inputs")
    assert not client.is_model_ready("two_inputs")
    state = next(each for each in client.get_model_repository_index() if each["name"] == "two_inputs")
    assert state["state"] == "UNAVAILABLE"
    assert state["reason"].startswith("unloaded")
    client.load_model("two_inputs")
    client.unload_model("two_inputs", unload_dependents=True)
    client.load_model("two_inputs")
    assert client.is_model_ready("two_inputs")
    for call in (client.load_model, client.unload_model):
        assert refused(lambda call=call: call("nothing"))[0] == "404"


def test_statistics(client: triton.InferenceServerClient) -> None:
    everything = client.get_inference_statistics()["model_stats"]
    assert {"iris", "all_types"} <= {each["name"] for each in everything}
    client.infer("iris", [given("X", X, "FP32")])
    for version in ("", "1"):
        (stats,) = client.get_inference_statistics("iris", version)["model_stats"]
        assert (stats["name"], stats["version"]) == ("iris", "1")
        assert isinstance(stats["inference_stats"]["success"]["ns"], int)


def test_settings_are_told_and_not_changed(client: triton.InferenceServerClient) -> None:
    traced = client.get_trace_settings()
    assert traced["trace_level"] == ["OFF"]
    assert client.get_trace_settings("iris") == traced
    assert client.update_trace_settings("iris", {"trace_level": ["OFF"], "trace_rate": None}) == traced
    assert refused(lambda: client.get_trace_settings("nothing"))[0] == "404"
    status, text = refused(lambda: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}))
    assert (status, "trace setting 'trace_level' cannot be TIMESTAMPS" in text) == ("501", True)
    assert refused(lambda: client.update_trace_settings(settings={"trace_levels": "OFF"}))[0] == "400"
    logged = client.get_log_settings()
    assert (logged["log_info"], logged["log_verbose_level"]) == (True, 0)
    assert client.update_log_settings({"log_error": True}) == logged
    status, text = refused(lambda: client.update_log_settings({"log_verbose_level": 1}))
    assert (status, "log setting 'log_verbose_level' cannot be 1" in text) == ("501", True)


def test_shared_memory_is_empty_and_stays_so(client: triton.InferenceServerClient) -> None:
    assert client.get_system_shared_memory_status() == client.get_cuda_shared_memory_status() == []
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    calls = [
        ("404", lambda: client.get_system_shared_memory_status("r")),
        ("404", lambda: client.get_cuda_shared_memory_status("r")),
        ("404", lambda: client.unregister_system_shared_memory("r")),
        ("404", lambda: client.unregister_cuda_shared_memory("r")),
        ("501", lambda: client.register_system_shared_memory("r", "/r", 16)),
        ("501", lambda: client.register_cuda_shared_memory("r", b"x", 0, 16)),
    ]
    for status, call in calls:
        found, text = refused(call)
        assert (found, "shared memory" in text) == (status, True)
    tensor = triton.InferInput("X", [2, 4], "FP32")
    tensor.set_shared_memory("r", 32)
    assert "'shared_memory_region'" in refused(lambda: client.infer("iris", [tensor]))[1]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_infer(client: triton.InferenceServerClient, binary_in: bool, binary_out: bool | None) -> None:
    names = ("label", "probabilities")
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in names]
    inputs = [given("X", X, "FP32", binary_in)]
    result = client.infer("iris", inputs, "1", outputs=outputs, request_id="42", timeout=20_000_000)
    assert_iris(result)
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response["id"]) == ("iris", "1", "42")
    assert [("data" in output) for output in response["outputs"]] == [binary_out is False] * 2


def values_of(datatype: str, shape: list[int]) -> np.ndarray:
    count = int(np.prod(shape))
    if datatype == "BYTES":
        return np.array(["größe", "", "a\0b"] * count, object)[:count].reshape(shape)
    dtype = np.dtype(triton_to_np_dtype(datatype))
    if dtype.kind == "b":
        return np.arange(count).reshape(shape) % 2 == 0
    limits: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return np.array([limits.min, 0, 1, limits.max] * count, dtype)[:count].reshape(shape)


@pytest.mark.parametrize("coding", CODINGS)
def test_every_datatype_both_ways(client: triton.InferenceServerClient, coding: str | None) -> None:
    """all_types gives back what it gets."""
    specs = client.get_model_metadata("all_types")
    arrays = [values_of(each["datatype"], [3, 4]) for each in specs["inputs"]]
    inputs = [given(s["name"], a, s["datatype"]) for s, a in zip(specs["inputs"], arrays, strict=True)]
    codings: Any = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
    result = client.infer("all_types", inputs, **codings)
    for spec, array in zip(specs["outputs"], arrays, strict=True):
        got = result.as_numpy(spec["name"])
        if spec["datatype"] == "BYTES":
            got = np.array([each.decode() for each in got.ravel()], object).reshape(got.shape)
        assert got.dtype == array.dtype
        assert got.tolist() == array.tolist(), spec


def test_outputs_each_in_its_own_way(client: triton.InferenceServerClient) -> None:
    label = triton.InferRequestedOutput("label", binary_data=False)
    result = client.infer(
        "iris", [given("X", X, "FP32")], outputs=[label, triton.InferRequestedOutput("probabilities")]
    )
    assert_iris(result)
    assert ["data" in output for output in result.get_response()["outputs"]] == [True, False]
    for binary in (True, False):
        best = triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=2)
        found = client.infer("iris", [given("X", X, "FP32")], outputs=[best]).as_numpy("probabilities")
        texts = [each.decode() if isinstance(each, bytes) else each for each in found[:, 0]]
        assert [int(text.split(":")[1]) for text in texts] == reference("iris", {"X": X})["label"].tolist()


def test_async_infer(client: triton.InferenceServerClient) -> None:
    for call in [client.async_infer("iris", [given("X", X, "FP32")]) for _ in range(8)]:
        assert_iris(call.get_result(timeout=20))


def test_a_body_that_is_made_and_read_apart(site: Server) -> None:
    made, length = triton.InferenceServerClient.generate_request_body([given("X", X, "FP32")])
    answer = post(site.rest_port, "/v2/models/iris/infer", made, Inference_Header_Content_Length=str(length))
    length = int(answer.headers["inference-header-content-length"])
    assert_iris(triton.InferenceServerClient.parse_response_body(answer.body, header_length=length))


def test_parameters(client: triton.InferenceServerClient) -> None:
    inputs = [given("X", X, "FP32")]
    assert_iris(client.infer("iris", inputs, sequence_id=0, priority=0, parameters={"mine": "x", "and": 1}))
    timing = client.infer("iris", inputs, parameters={"nexus_timing": True}).get_response()["parameters"]
    assert timing["nexus_batch_size"] >= 2
    for sent in ({"sequence_id": 3, "sequence_start": True}, {"sequence_id": "a"}, {"priority": 1}):
        status, text = refused(lambda sent=sent: client.infer("iris", inputs, **sent))
        assert (status, next(iter(sent)) in text) == ("400", True)


def test_errors_are_texts(client: triton.InferenceServerClient) -> None:
    assert refused(lambda: client.infer("nothing", [given("X", X, "FP32")])) == (
        "404",
        "Request for unknown model: 'nothing' is not found",
    )
    status, text = refused(lambda: client.infer("iris", [given("X", X[:, :3].copy(), "FP32")]))
    assert (status, "expected shape [-1,4], got [2,3]" in text) == ("400", True)


def test_errors_of_envoy_are_texts_too(site: Server) -> None:
    for path, status in (("/v2/nothing", 404), ("/v2/models/iris/infer", 405), ("/v2/models/iris?x=1", 400)):
        answer = get(site.rest_port, path)
        assert (answer.status, list(answer.json)) == (status, ["error"])
    answer = post(site.rest_port, "/v2/models/iris/infer", b"{}", grpc_timeout="soon")
    assert (answer.status, list(answer.json)) == (400, ["error"])


def test_every_route_of_the_protocol_answers(site: Server) -> None:
    """No content type, no body: what is refused is refused by the server, in the protocol's shape."""
    for method in http_methods():
        for binding in method.bindings if method.is_v2 else ():
            path = binding.template.format(model_name="digits_cnn", model_version="1", region="r")
            answer = post(site.rest_port, path, b"", Content_Type="") if method.has_body else get(site.rest_port, path)
            assert answer.status in (200, 400, 404, 501), (path, answer)
            assert answer.status == 200 or "no such path" not in answer.message
    assert post(site.rest_port, "/v2/repository/models/digits_cnn/load", b"").status == 200


def test_aio(site: Server) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{site.rest_port}") as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("iris")
            assert (await client.get_model_config("iris"))["max_batch_size"] == 1024
            assert (await client.get_model_repository_index())[0]["name"] == "all_types"
            assert (await client.get_inference_statistics("iris"))["model_stats"][0]["name"] == "iris"
            await client.load_model("iris")
            # Not request_compression_algorithm: this version of the client forgot to import gzip.
            for coding in CODINGS:
                tensor = given("X", X, "FP32", kind=triton_aio.InferInput)
                assert_iris(await client.infer("iris", [tensor], response_compression_algorithm=coding))
            with pytest.raises(InferenceServerException, match="unknown model: 'nothing'"):
                await client.get_model_metadata("nothing")

    asyncio.run(asyncio.wait_for(ask(), 40))


def test_priorities_of_a_model_with_levels(tmp_path: pathlib.Path) -> None:
    """Those of a lower number overtake (tests/property/test_batcher.py); here: they are taken at all."""
    repository = copy_models(tmp_path / "models", "two_inputs")
    config = repository / "two_inputs" / "config.pbtxt"
    text = config.read_text()
    config.write_text(text.replace("dynamic_batching {", "dynamic_batching {\n  priority_levels: 2\n"))
    with running_server(tmp_path, "--workers=1", repository=repository, rest=True) as server:
        client = triton.InferenceServerClient(f"127.0.0.1:{server.rest_port}")
        row = np.ones((1, 3), np.float32)
        for priority in (0, 1, 2, 3):
            result = client.infer("two_inputs", [given("a", row, "FP32"), given("b", row, "FP32")], priority=priority)
            assert result.as_numpy("sum").tolist() == [[2, 2, 2]]
