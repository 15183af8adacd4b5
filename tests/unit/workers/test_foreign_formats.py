"""Files that are no ONNX models: what they are, and what makes ONNX of them."""

import bz2
import gzip
import io
import lzma
import pickle
import re
import zipfile
import zlib
from pathlib import Path

import joblib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from nexus_grpc.worker.foreign_formats import HEAD_BYTES, recognised
from nexus_grpc.worker.scan import NotOnnx, scan
from tests.unit.support import one_node

X = np.array([[0, 0], [1, 1], [0, 1], [1, 0]], np.float64)
MODEL = LogisticRegression().fit(X, [0, 1, 0, 1])


def dumped(compress: int | tuple[str, int] = 0) -> bytes:
    target = io.BytesIO()
    joblib.dump(MODEL, target, compress=compress)
    return target.getvalue()


def zipped(*names: str) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        for name in names:
            file.writestr(name, b"\x80\x02}q\x00.")
    return target.getvalue()


SKLEARN, TORCH = "from skl2onnx import to_onnx", "torch.onnx.export(model.eval()"


@pytest.mark.parametrize(
    ("content", "name", "advice"),
    [
        *((pickle.dumps(MODEL, protocol), "a scikit-learn model", SKLEARN) for protocol in (2, 3, 4, 5)),
        (dumped(), "a scikit-learn model", SKLEARN),
        (dumped(3), "a compressed file, such as joblib writes", SKLEARN),
        (dumped(("gzip", 3)), "a compressed file", SKLEARN),
        (dumped(("xz", 3)), "a compressed file", SKLEARN),
        (dumped(("bz2", 3)), "a compressed file", SKLEARN),
        (pickle.dumps({"weights": [1.5]}), "a Python pickle", SKLEARN),
        (zipped("archive/data.pkl", "archive/data/0"), "a PyTorch file (.pt)", TORCH),
        (zipped("net/constants.pkl", "net/code/x.py"), "a PyTorch file (.pt)", TORCH),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "a PyTorch file (.pt)", TORCH),
        (b"\x80\x02ctorch.nn.modules\nLinear\n.", "a pickle of a PyTorch model", TORCH),
        (zipped("metadata.json", "config.json"), "a Keras file", "tf2onnx"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file", "tf2onnx"),
        (zipped("model.onnx"), "a zip file", "the .onnx file that is in it"),
        (b"\x1c\0\0\0TFL3" + bytes(100), "a TensorFlow Lite model", "tf2onnx.convert"),
        (b"GGUF\x03\0\0\0", "a GGUF file", "ONNX"),
        (b"\x40\0\0\0\0\0\0\0" + b'{"w":{"dtype":"F32"', "a safetensors file", "export the model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS", "git lfs pull"),
    ],
)
def test_what_it_is_and_what_to_do(content: bytes, name: str, advice: str) -> None:
    with pytest.raises(NotOnnx) as failure:
        scan(content)
    text = str(failure.value)
    assert text.startswith(f"not an ONNX model: the file is {name}")
    assert advice in text
    assert "\n" not in text


def test_the_advice_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word: what it writes passes the scan."""
    (code,) = re.findall(r"`(.*)`", recognised(pickle.dumps(MODEL)))
    monkeypatch.chdir(tmp_path)
    exec(code, {"model": MODEL, "X": X})
    scan((tmp_path / "model.onnx").read_bytes())


@given(
    st.binary(max_size=200)
    | st.sampled_from([zlib.compress(b""), gzip.compress(b""), bz2.compress(b""), lzma.compress(b"")])
)
def test_any_bytes_are_looked_at(content: bytes) -> None:
    assert recognised(content) == "" or recognised(content).startswith("not an ONNX model: ")


def test_a_model_is_none_of_them(tmp_path: Path) -> None:
    content = Path(one_node("Relu").save(tmp_path)).read_bytes()
    assert recognised(content[:HEAD_BYTES]) == ""
    scan(content)


def test_nothing_is_loaded() -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("it was loaded",)

    with pytest.raises(NotOnnx, match="a pickle can run any code when it is loaded"):
        scan(pickle.dumps(Trap()))
