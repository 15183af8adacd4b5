"""The example models: what is in models/ is what examples/ builds, loads in ONNX Runtime and gives right answers."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from google.protobuf import text_format
from sklearn.datasets import load_iris

from nexus_grpc.pb.inference import model_config_pb2
from nexus_grpc.worker.onnx_runtime import ort

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples import build_models, common
from examples.training import diabetes, digits, echo, iris

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "models"
NAMES = sorted(build_models.BUILDERS)
CONFIGURED = sorted(path.parent.name for path in MODELS.glob("*/config.pbtxt"))

# Their weights come out of BLAS, whose last bits depend on the processor, so another machine may write other bytes.
SLOWLY_TRAINED = "digits_cnn"
TRAINED = ("diabetes_f64", SLOWLY_TRAINED, "iris", "iris_forest")
WRITTEN = sorted(set(NAMES) - set(TRAINED))

DATA_TYPES = {
    "tensor(float)": model_config_pb2.TYPE_FP32,
    "tensor(double)": model_config_pb2.TYPE_FP64,
    "tensor(int64)": model_config_pb2.TYPE_INT64,
    "tensor(string)": model_config_pb2.TYPE_STRING,
}

Feed = dict[str, npt.NDArray[Any]]


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


@cache
def committed(name: str) -> ort.InferenceSession:
    return session(MODELS / name / "1" / "model.onnx")


def infer(name: str, feed: Feed) -> dict[str, Any]:
    model = committed(name)
    outputs = [output.name for output in model.get_outputs()]
    return dict(zip(outputs, model.run(outputs, feed), strict=True))


@cache
def rebuilt(name: str) -> common.Example:
    return build_models.BUILDERS[name]()


def config(name: str) -> model_config_pb2.ModelConfig:
    text = (MODELS / name / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def held_out(name: str) -> Feed:
    if name == "diabetes_f64":
        return {"X": diabetes.split()[1]}
    if name == "digits_cnn":
        return {"image": digits.split()[1]}
    return {"X": iris.split()[1]}


def test_the_repository_holds_every_example_and_nothing_else() -> None:
    assert sorted(path.name for path in MODELS.iterdir() if path.is_dir()) == NAMES
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name) for name in NAMES)
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < 1_000_000


@pytest.mark.parametrize("name", NAMES)
def test_versions_are_pinned(name: str) -> None:
    model = onnx.load(MODELS / name / "1" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= 10
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 17, "ai.onnx.ml": 3}
    assert model.graph.name == name


@pytest.mark.parametrize("name", WRITTEN)
def test_rebuilding_a_hand_written_model_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    path = common.write(rebuilt(name), tmp_path)
    assert path.read_bytes() == (MODELS / name / "1" / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name == SLOWLY_TRAINED else []) for name in TRAINED]
)
def test_training_twice_gives_the_same_bytes(name: str) -> None:
    again = build_models.BUILDERS[name]()
    assert again.model.SerializeToString(deterministic=True) == rebuilt(name).model.SerializeToString(
        deterministic=True
    )


@pytest.mark.parametrize("name", TRAINED)
def test_retraining_gives_the_same_model(name: str, tmp_path: Path) -> None:
    fresh = session(common.write(rebuilt(name), tmp_path))
    kept = onnx.load(MODELS / name / "1" / "model.onnx")
    assert list(rebuilt(name).model.graph.input) == list(kept.graph.input)
    assert list(rebuilt(name).model.graph.output) == list(kept.graph.output)
    feed = held_out(name)
    for before, after in zip(committed(name).run(None, feed), fresh.run(None, feed), strict=True):
        assert_close(before, after)


def assert_close(before: Any, after: Any) -> None:
    if isinstance(before, list):
        # ZipMap: one map per row.
        assert [list(row) for row in before] == [list(row) for row in after]
        before, after = ([list(row.values()) for row in rows] for rows in (before, after))
    if np.asarray(before).dtype.kind in "OU":
        assert list(before) == list(after)
    else:
        np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_files_beside_the_model_are_rebuilt_exactly(name: str, tmp_path: Path) -> None:
    common.write(rebuilt(name), tmp_path)
    built = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.is_file()}
    kept = {path.name: path.read_bytes() for path in (MODELS / name).iterdir() if path.is_file()}
    assert built == kept


@pytest.mark.parametrize("name", CONFIGURED)
def test_config_agrees_with_the_model(name: str) -> None:
    declared = config(name)
    model = committed(name)
    assert declared.name == name
    assert declared.max_batch_size > 0
    for tensors, actual in ((declared.input, model.get_inputs()), (declared.output, model.get_outputs())):
        assert [(t.name, t.data_type, list(t.dims)) for t in tensors] == [
            (t.name, DATA_TYPES[t.type], t.shape[1:]) for t in actual
        ]


def test_digits_config_labels_and_warmup() -> None:
    declared = config("digits_cnn")
    (labelled,) = [output for output in declared.output if output.label_filename]
    labels = (MODELS / "digits_cnn" / labelled.label_filename).read_text(encoding="utf-8").splitlines()
    assert (labelled.name, labels[0], labels[9], len(labels)) == ("probabilities", "zero", "nine", 10)
    assert declared.version_policy.latest.num_versions == 1
    assert declared.model_warmup[0].inputs["image"].zero_data
    assert config("two_inputs").HasField("dynamic_batching")


def test_iris_is_accurate() -> None:
    _, features, _, labels = iris.split()
    result = infer("iris", {"X": features})
    assert (result["label"] == labels).mean() > 0.9
    np.testing.assert_allclose(result["probabilities"].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(result["probabilities"].argmax(axis=1), result["label"])


def test_iris_forest_gives_maps_keyed_by_species() -> None:
    _, features, _, labels = iris.split()
    names = list(load_iris().target_names)
    result = infer("iris_forest", {"X": features})
    assert np.mean(result["output_label"] == np.asarray(names, dtype=object)[labels]) > 0.9
    for label, row in zip(result["output_label"], result["output_probability"], strict=True):
        assert list(row) == names
        assert max(row, key=row.__getitem__) == label


def test_diabetes_keeps_double_precision() -> None:
    features = diabetes.split()[1]
    (output,) = infer("diabetes_f64", {"X": features}).values()
    assert output.dtype == np.float64
    assert output.shape == (len(features), 1)
    # Tighter than float32 could be, looser than the difference between two machines' fits.
    np.testing.assert_allclose(output[:, 0], diabetes.fit().predict(features), rtol=1e-10)


def test_digits_cnn_is_accurate() -> None:
    _, images, _, labels = digits.split()
    result = infer("digits_cnn", {"image": images})
    assert (result["logits"].argmax(axis=1) == labels).mean() > 0.9
    exponents = np.exp(result["logits"] - result["logits"].max(axis=1, keepdims=True))
    expected = exponents / exponents.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(result["probabilities"], expected, rtol=1e-4, atol=1e-7)


def test_counts_stay_exact_beyond_double_precision() -> None:
    counts = np.array([[2**60 + 1, 2, 3, 4], [-1, 0, 0, -(2**53) - 1]], dtype=np.int64)
    result = infer("counts_i64", {"counts": counts})
    np.testing.assert_array_equal(result["total"], [[2**60 + 10], [-(2**53) - 2]])
    np.testing.assert_array_equal(result["affine"], counts * 3 + 7)


@pytest.mark.parametrize("rows", [1, 64])
def test_two_inputs(rows: int) -> None:
    a, b = np.random.default_rng(rows).normal(size=(2, rows, 3)).astype(np.float32)
    result = infer("two_inputs", {"a": a, "b": b})
    np.testing.assert_array_equal(result["sum"], a + b)
    np.testing.assert_array_equal(result["product"], a * b)


def test_fixed_batch() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(infer("fixed_batch", {"x": x})["y"], 2 * x + 1)
    with pytest.raises(Exception, match="invalid dimensions"):
        infer("fixed_batch", {"x": x[:1]})


def test_scalar() -> None:
    y = infer("scalar", {"x": np.array(-3, dtype=np.float32)})["y"]
    assert (np.shape(y), float(y)) == ((), 9.0)


def test_text_echo() -> None:
    text = np.array([["seven"], [""], ["zéro ✓ 数"], ["Seven"], ["zero"]], dtype=object)
    result = infer("text_echo", {"text": text})
    assert result["echo"].tolist() == text.tolist()
    assert result["code"].tolist() == [[7], [-1], [-1], [-1], [0]]


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_all_types_come_back_bit_for_bit(rows: int) -> None:
    rng = np.random.default_rng(rows)
    feed: Feed = {}
    for width, name in enumerate(echo.TYPES, start=1):
        dtype = np.dtype(name)
        # Random bits cover extremes, NaN payloads and subnormals; a bool has only two valid bytes.
        raw = rng.integers(0, 2 if name == "bool" else 256, size=rows * width * dtype.itemsize, dtype=np.uint8)
        feed[f"in_{name}"] = raw.view(dtype).reshape(rows, width)
    result = infer("all_types", feed)
    for name in echo.TYPES:
        sent, received = feed[f"in_{name}"], result[f"out_{name}"]
        assert (received.dtype, received.shape) == (sent.dtype, sent.shape)
        assert received.tobytes() == sent.tobytes()


def test_the_script_builds_only_what_is_asked(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "build_models.py")]
    done = subprocess.run(
        [*command, "--only", "scalar", "--out", str(tmp_path)], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert [path.name for path in tmp_path.iterdir()] == ["scalar"]
    assert len(done.stdout.splitlines()) == 1
    assert (tmp_path / "scalar/1/model.onnx").read_bytes() == (MODELS / "scalar/1/model.onnx").read_bytes()
