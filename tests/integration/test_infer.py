"""ModelInfer and Predict answer what onnxruntime answers: every datatype, form, shape and batch."""

import concurrent.futures
from typing import Any

import numpy as np
import pytest

from nexus_grpc.pb.nexus.v1 import inference_pb2 as nexus_pb
from tests.integration.client import Client, outputs_of, raw_request, typed_request
from tests.integration.graphs import reference

RNG = np.random.default_rng(3)
IRIS = RNG.uniform(0, 8, (32, 4)).astype(np.float32)
EXTREMES = {
    "bool": [False, True],
    **{f"{sign}int{bits}": None for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "float16": [65504.0, -0.0, 6e-8, float("inf"), float("nan")],
    "float32": [3.4e38, -0.0, 1e-45, float("-inf"), float("nan")],
    "float64": [1.7e308, -0.0, 5e-324, float("inf"), float("nan")],
}


def all_types(rows: int = 2, widest: int = 9) -> dict[str, np.ndarray]:
    """Inputs of `all_types`, each of another width, with the datatype's extremes."""
    arrays = {}
    for index, (dtype, values) in enumerate(EXTREMES.items()):
        if values is None:
            limits = np.iinfo(dtype)
            values = [limits.min, limits.max, 0]
        pool = np.array(values, dtype)
        count = rows * (1 + (index + 2) % widest)
        arrays[f"in_{dtype}"] = np.resize(pool, count).reshape(rows, -1)
    return arrays


def assert_same(outputs: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(outputs) == list(expected)
    for name, array in expected.items():
        assert outputs[name].dtype == array.dtype, name
        assert outputs[name].shape == array.shape, name
        np.testing.assert_allclose(outputs[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("build", [raw_request, typed_request])
@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        ("iris", {"X": IRIS[:1]}),
        ("iris", {"X": IRIS}),
        ("diabetes_f64", {"X": RNG.normal(size=(3, 10))}),
        ("digits_cnn", {"image": RNG.uniform(0, 1, (2, 1, 8, 8)).astype(np.float32)}),
        ("counts_i64", {"counts": np.array([[1, -2, 3, 4], [2**40, 0, 5, -(2**41)]])}),
        ("fixed_batch", {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}),
        ("scalar", {"x": np.array(2.5, np.float32)}),
        ("two_inputs", {"a": IRIS[:2, :3], "b": IRIS[2:4, :3]}),
        ("two_inputs", {"b": IRIS[2:4, :3], "a": IRIS[:2, :3]}),
    ],
)
def test_answers_are_onnxruntimes(client: Client, model: str, inputs: dict[str, np.ndarray], build: Any) -> None:
    for _ in range(3):  # decoded in full, then from the template
        response = client.infer(build(model, inputs, id="id 7"))
        assert bool(response.raw_output_contents) == (build is raw_request)
        assert (response.model_name, response.model_version, response.id) == (model, "1", "id 7")
        assert_same(outputs_of(response), reference(model, inputs))


def test_every_datatype_is_bit_exact_raw(client: Client) -> None:
    for rows in (1, 2, 2, 2):
        inputs = all_types(rows)
        outputs = outputs_of(client.infer(raw_request("all_types", inputs)))
        expected = reference("all_types", inputs)
        assert {name: array.dtype for name, array in outputs.items()} == {n: a.dtype for n, a in expected.items()}
        for name, array in expected.items():
            assert outputs[name].tobytes() == array.tobytes(), name
            assert array.tobytes() == inputs["in_" + name.removeprefix("out_")].tobytes()


@pytest.mark.parametrize("output", ["out_" + name for name in EXTREMES])
def test_each_output_alone(client: Client, output: str) -> None:
    request = raw_request("all_types", all_types(2))
    request.outputs.add(name=output)
    outputs = outputs_of(client.infer(request))
    assert list(outputs) == [output]
    assert outputs[output].tobytes() == all_types(2)["in_" + output.removeprefix("out_")].tobytes()


def test_fp16_makes_the_whole_answer_raw(client: Client) -> None:
    values = np.array([[1.5, -2.0]], np.float32)
    response = client.infer(typed_request("halves", {"x": values}))
    outputs = outputs_of(response)
    assert outputs["before"].tolist() == [[1.5, -2.0]]
    assert outputs["half"].tolist() == [[1.5, -2.0]]
    assert outputs["after"].tolist() == [[-1.5, 2.0]]
    request = typed_request("halves", {"x": values})
    request.outputs.add(name="after")
    response = client.infer(request)
    assert not response.raw_output_contents
    assert list(response.outputs[0].contents.fp32_contents) == [-1.5, 2.0]


@pytest.mark.parametrize("build", [raw_request, typed_request])
@pytest.mark.parametrize("value", [-(2**62) - 1, 2**62 + 1, 2**53 + 1, -1, 0])
def test_int64_is_exact(client: Client, build: Any, value: int) -> None:
    counts = np.array([[value, 0, 0, 0]])
    assert_same(
        outputs_of(client.infer(build("counts_i64", {"counts": counts}))), reference("counts_i64", {"counts": counts})
    )


TEXTS = ["", "plain", "Grüße, 世界 🚀", "embedded\0nul", "\0", "line\nbreak", "x" * 5000]


@pytest.mark.parametrize("build", [raw_request, typed_request])
def test_text(client: Client, build: Any) -> None:
    texts = np.array(TEXTS, object).reshape(-1, 1)
    outputs = outputs_of(client.infer(build("text_echo", {"text": texts})))
    assert [item.decode() for item in outputs["echo"].ravel()] == TEXTS
    for text in TEXTS:
        outputs = outputs_of(client.infer(build("text_echo", {"text": np.array([[text]], object)})))
        assert outputs["echo"].ravel()[0].decode() == text
        answer = client.predict(nexus_pb.PredictRequest(model_id="text_echo", texts=[text]))
        assert list(answer.labels) == [text]


def test_nan_and_infinity_pass(client: Client) -> None:
    for value in (float("nan"), float("inf"), float("-inf")):
        inputs = {"a": np.full((1, 3), value, np.float32), "b": np.ones((1, 3), np.float32)}
        assert_same(outputs_of(client.infer(raw_request("two_inputs", inputs))), reference("two_inputs", inputs))


def test_requested_outputs_and_their_order(client: Client) -> None:
    expected = reference("two_inputs", {"a": IRIS[:1, :3], "b": IRIS[1:2, :3]})
    for names in (["product", "sum"], ["product"], ["sum", "sum"]):
        for build in (raw_request, typed_request):
            request = build("two_inputs", {"a": IRIS[:1, :3], "b": IRIS[1:2, :3]})
            for name in names:
                request.outputs.add(name=name)
            response = client.infer(request)
            assert [tensor.name for tensor in response.outputs] == names
            np.testing.assert_allclose(outputs_of(response)[names[0]], expected[names[0]], rtol=1e-6)


@pytest.mark.parametrize("build", [raw_request, typed_request])
def test_classification(client: Client, build: Any) -> None:
    image = RNG.uniform(0, 1, (3, 1, 8, 8)).astype(np.float32)
    request = build("digits_cnn", {"image": image})
    request.outputs.add(name="probabilities").parameters["classification"].int64_param = 3
    outputs = outputs_of(client.infer(request))["probabilities"]
    expected = reference("digits_cnn", {"image": image})["probabilities"]
    labels = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert outputs.shape == (3, 3)
    for row, probabilities in zip(outputs, expected, strict=True):
        order = np.argsort(-probabilities)[:3]
        for item, index in zip(row, order, strict=True):
            value, got_index, label = item.decode().split(":")
            assert int(got_index) == index
            assert abs(float(value) - probabilities[index]) < 1e-5
            assert label == labels[index]


def test_classification_without_labels_and_of_every_datatype(client: Client) -> None:
    request = raw_request("iris", {"X": IRIS[:2]})
    request.outputs.add(name="probabilities").parameters["classification"].int64_param = 99
    found = outputs_of(client.infer(request))["probabilities"]
    assert found.shape == (2, 3)
    assert all(item.count(b":") == 1 for item in found.ravel())
    for dtype in EXTREMES:
        request = raw_request("all_types", all_types(2))
        request.outputs.add(name=f"out_{dtype}").parameters["classification"].int64_param = 1
        assert outputs_of(client.infer(request))[f"out_{dtype}"].shape == (2, 1)


def test_zipmap_is_served_as_tensors(client: Client) -> None:
    response = client.infer(raw_request("iris_forest", {"X": IRIS[:4]}))
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in response.outputs] == [
        ("label", "BYTES", [4]),
        ("probabilities", "FP32", [4, 3]),
    ]
    outputs = outputs_of(response)
    expected = reference("iris_forest", {"X": IRIS[:4]})
    assert [item.decode() for item in outputs["label"]] == expected["output_label"].tolist()
    rows = [list(row.values()) for row in expected["output_probability"]]
    np.testing.assert_allclose(outputs["probabilities"], rows, rtol=1e-6)
    answer = client.predict(nexus_pb.PredictRequest(model_id="iris_forest", features=IRIS[0]))
    assert list(answer.labels) == [expected["output_label"][0]]
    np.testing.assert_allclose(answer.probabilities, rows[0], rtol=1e-6)
    assert answer.confidence == pytest.approx(max(rows[0]))


def test_zero_width_tensors(client: Client) -> None:
    inputs = {name: array[:, :0] for name, array in all_types(2).items()}
    outputs = outputs_of(client.infer(raw_request("all_types", inputs)))
    assert {array.shape for array in outputs.values()} == {(2, 0)}


def test_batches_equal_single_rows(client: Client) -> None:
    together = outputs_of(client.infer(raw_request("iris", {"X": IRIS})))
    rows = [nexus_pb.FeatureRow(features=row) for row in IRIS]
    batch = client.batch_predict(nexus_pb.BatchPredictRequest(model_id="iris", rows=rows))
    assert len(batch.predictions) == len(IRIS)
    for index, row in enumerate(IRIS):
        alone = outputs_of(client.infer(raw_request("iris", {"X": row[None]})))
        assert alone["label"][0] == together["label"][index] == batch.predictions[index].prediction[0]
        np.testing.assert_allclose(alone["probabilities"][0], together["probabilities"][index], rtol=1e-5)
        np.testing.assert_allclose(batch.predictions[index].probabilities, alone["probabilities"][0], rtol=1e-5)
        predicted = client.predict(nexus_pb.PredictRequest(model_id="iris", features=row))
        np.testing.assert_allclose(predicted.probabilities, alone["probabilities"][0], rtol=1e-5)


def test_many_batch_sizes_at_once(client: Client) -> None:
    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(1 + seed % 17, 1 + seed % 5)).astype(np.float32)
        response = client.infer(raw_request("identity", {"x": values}, id=f"{seed:04d}"))
        assert response.id == f"{seed:04d}"
        assert outputs_of(response)["y"].tobytes() == values.tobytes()
        assert outputs_of(response)["y"].shape == values.shape

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(600)))


def test_equal_lengths_do_not_mix_up_ids_versions_or_values(client: Client) -> None:
    """All these messages have one length: a template must tell them apart."""

    def ask(number: int) -> None:
        version = 1 + number % 2
        values = np.array([[number, -number]], np.float32)
        fields = {"model_version": str(version), "id": f"{number % 7:06d}"}
        request = raw_request("scale", {"x": values}, **fields)
        if number % 3 == 0:
            request.parameters["prioritx"].int64_param = 1
        else:
            request.parameters["timeoux1"].int64_param = 1
        response = client.infer(request)
        assert (response.id, response.model_version) == (fields["id"], fields["model_version"])
        assert outputs_of(response)["y"].tolist() == (values * version).tolist()
        predicted = client.predict(
            nexus_pb.PredictRequest(
                model_id="scale", model_version=str(version), features=values[0], request_id=f"{number:06d}"
            )
        )
        assert (predicted.request_id, predicted.model_version) == (f"{number:06d}", str(version))
        assert list(predicted.prediction) == (values[0] * version).tolist()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(400)))
    assert client.infer(raw_request("scale", {"x": np.ones((1, 2), np.float32)})).model_version == "2"


def test_features_in_pieces(client: Client) -> None:
    """Protobuf lets a packed field come in pieces, packed or not; later ones might wrongly match a template."""
    tag, packed = b"\x0a\x05scale", np.array([3.0, 4.0]).tobytes()
    spellings = [
        tag + b"\x1a\x10" + packed,
        tag + b"\x1a\x08" + packed[:8] + b"\x1a\x08" + packed[8:],
        tag + b"\x19" + packed[:8] + b"\x19" + packed[8:],
        tag + b"\x1a\x08" + packed[:8] + b"\x19" + packed[8:],
        tag + b"\x19" + packed[:8] + b"\x1a\x08" + packed[8:],
    ]
    for spelling in spellings:
        for _ in range(10):
            assert list(client.predict(spelling).prediction) == [6.0, 8.0]
