"""Handwritten digits: a small convolutional net trained without a deep learning framework.

The convolution filters are random and fixed; scikit-learn learns the last layer on the features that they give, which
is enough for 8x8 images. The parts are then put together as one ONNX graph.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

# Lets the script run by its path as well as with `python -m`.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples import common

FILTERS = 8
# Pixels run from 0 to 16, so dividing the filters saves callers from scaling their images.
PIXEL_MAX = 16.0

Array = npt.NDArray[np.floating]

LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CONFIG = """\
name: "digits_cnn"
backend: "onnxruntime"
max_batch_size: 32
version_policy { latest { num_versions: 1 } }
input [
  { name: "image" data_type: TYPE_FP32 dims: [ 1, 8, 8 ] }
]
output [
  { name: "logits" data_type: TYPE_FP32 dims: [ 10 ] },
  { name: "probabilities" data_type: TYPE_FP32 dims: [ 10 ] label_filename: "labels.txt" }
]
model_warmup [
  {
    name: "zero image"
    batch_size: 1
    inputs { key: "image" value { data_type: TYPE_FP32 dims: [ 1, 8, 8 ] zero_data: true } }
  }
]
"""


def split() -> list[Any]:
    """Training images [n, 1, 8, 8], held-out images, training labels and held-out labels."""
    digits = load_digits()
    images = digits.images.astype(np.float32)[:, np.newaxis]
    parts = train_test_split(images, digits.target, test_size=0.25, stratify=digits.target, random_state=common.SEED)
    return list(parts)


def _filters() -> tuple[Array, Array]:
    rng = np.random.default_rng(common.SEED)
    kernels = rng.normal(size=(FILTERS, 1, 3, 3)) / PIXEL_MAX
    return kernels.astype(np.float32), rng.normal(scale=0.1, size=FILTERS).astype(np.float32)


def features(images: Array, kernels: Array, bias: Array) -> Array:
    """What the graph computes up to Flatten, in double precision: padded convolution, ReLU, 2x2 max pooling."""
    padded = np.pad(images[:, 0].astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    maps = np.einsum("nhwij,fij->nfhw", windows, kernels[:, 0]) + bias[:, np.newaxis, np.newaxis]
    pooled = np.maximum(maps, 0).reshape(len(images), FILTERS, 4, 2, 4, 2).max(axis=(3, 5))
    flat: Array = pooled.reshape(len(images), -1)
    return flat


def _graph(kernels: Array, bias: Array, weight: Array, intercept: Array) -> onnx.ModelProto:
    constants = {"conv_w": kernels, "conv_b": bias, "fc_w": weight, "fc_b": intercept}
    nodes = [
        helper.make_node("Conv", ["image", "conv_w", "conv_b"], ["conv"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"], "relu"),
        helper.make_node("MaxPool", ["relu"], ["pool"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pool"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "fc_w", "fc_b"], ["logits"], "fc", transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax", axis=1),
    ]
    return common.graph_model(
        "digits_cnn",
        "Convolutional net on scikit-learn's 8x8 digits.",
        nodes,
        [common.floats("image", [common.BATCH, 1, 8, 8])],
        [common.floats("logits", [common.BATCH, 10]), common.floats("probabilities", [common.BATCH, 10])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )


def digits_cnn() -> common.Example:
    """Learn the last layer and assemble the net."""
    train_x, test_x, train_y, test_y = split()
    kernels, bias = _filters()
    classifier = common.logistic_regression().fit(features(train_x, kernels, bias), train_y)
    accuracy = classifier.score(features(test_x, kernels, bias), test_y)
    model = _graph(kernels, bias, classifier.coef_.astype(np.float32), classifier.intercept_.astype(np.float32))
    files = {"config.pbtxt": CONFIG, "labels.txt": "\n".join(LABELS) + "\n"}
    return common.Example("digits_cnn", model, note=f"held-out accuracy {accuracy:.3f}", files=files)


BUILDERS: dict[str, common.Builder] = {"digits_cnn": digits_cnn}

if __name__ == "__main__":
    common.main(__doc__, BUILDERS)
