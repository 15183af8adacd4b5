"""What a file is that is no ONNX model: by its first bytes, and what makes ONNX of it. Nothing of it is loaded.

Sources: pickle.PROTO and pickletools, torch.save (a zip file with data.pkl; before PyTorch 1.6 a pickle that begins
with its magic number), joblib's compressors, the HDF5, FlatBuffers, GGUF and safetensors specifications, Git LFS.
"""

import dataclasses
import re
from collections.abc import Callable

HEAD_BYTES = 4096

_SKLEARN = (
    "where it was trained, with X the training data: `from skl2onnx import to_onnx;"
    ' open("model.onnx", "wb").write(to_onnx(model, X[:1].astype("float32")).SerializeToString())`'
)
_TORCH = (
    "where it was trained, with example a tensor like its input: `import torch;"
    ' torch.onnx.export(model.eval(), (example,), "model.onnx", input_names=["x"], output_names=["y"],'
    ' dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}}, dynamo=False)`'
)
_KERAS = '`import tf2onnx; tf2onnx.convert.from_keras(model, output_path="model.onnx")`'
_PICKLE_WARNING = "; a pickle can run any code when it is loaded, so this server never does"

_PICKLE = re.compile(rb"\x80[\x02-\x05]", re.DOTALL)
# The magic number of torch.save before PyTorch 1.6, as a pickle has it.
_OLD_TORCH = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")
# zlib, gzip, bzip2, xz, lzma, lz4: what joblib.dump(compress=…) writes.
_ZLIB = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
_COMPRESSED = (*_ZLIB, b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x5d\0\0", b"\x04\x22M\x18")


@dataclasses.dataclass(frozen=True, slots=True)
class _Format:
    name: str
    matches: Callable[[bytes], bool]
    advice: str


def _begins(*beginnings: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(beginnings)


def _is_zip_with(*names: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(b"PK\x03\x04") and any(name in head for name in names)


def _is_pickle_of(*modules: bytes) -> Callable[[bytes], bool]:
    return lambda head: _PICKLE.match(head) is not None and any(name in head for name in modules)


_FORMATS = (
    _Format("a PyTorch file (.pt)", _is_zip_with(b"/data.pkl", b"/constants.pkl"), f"export it {_TORCH}"),
    _Format("a PyTorch file (.pt)", _begins(_OLD_TORCH), f"export it {_TORCH}"),
    _Format("a pickle of a PyTorch model", _is_pickle_of(b"torch"), f"export it {_TORCH}{_PICKLE_WARNING}"),
    _Format(
        "a scikit-learn model (pickle or .joblib)",
        _is_pickle_of(b"sklearn", b"joblib"),
        f"convert it {_SKLEARN}{_PICKLE_WARNING}",
    ),
    _Format(
        "a Python pickle",
        _is_pickle_of(b""),
        f"if it is a scikit-learn model, convert it {_SKLEARN}{_PICKLE_WARNING}",
    ),
    _Format("a Keras file", _is_zip_with(b"config.json", b"model.weights.h5"), f"convert it: {_KERAS}"),
    _Format("an HDF5 file, such as Keras writes", _begins(b"\x89HDF\r\n\x1a\n"), f"convert it: {_KERAS}"),
    _Format("a zip file", _begins(b"PK\x03\x04"), "upload the .onnx file that is in it"),
    _Format(
        "a TensorFlow Lite model",
        lambda head: head[4:8] == b"TFL3",
        "convert it: `python -m tf2onnx.convert --tflite FILE --output model.onnx`",
    ),
    _Format("a GGUF file", _begins(b"GGUF"), "this server runs ONNX models"),
    _Format(
        "a safetensors file, weights without a model",
        lambda head: head[8:10] == b'{"',
        "export the model that they belong to as ONNX",
    ),
    _Format(
        "a pointer of Git LFS, not the file itself",
        _begins(b"version https://git-lfs"),
        "fetch it by `git lfs pull`",
    ),
    _Format(
        "a compressed file, such as joblib writes",
        _begins(*_COMPRESSED),
        f"unpack it; or, if it is a scikit-learn model (.joblib), convert it {_SKLEARN}",
    ),
)  # fmt: skip


def recognised(head: bytes) -> str:
    """What it is and what to do, as one sentence; empty for what is none of these.

    Args:
        head: the file's first HEAD_BYTES.
    """
    for each in _FORMATS:
        if each.matches(head):
            return f"not an ONNX model: the file is {each.name}; {each.advice}"
    return ""


__all__ = ["HEAD_BYTES", "recognised"]
