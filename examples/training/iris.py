"""Iris species: a logistic regression with tensor outputs and a random forest whose output is a ZipMap."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

# Lets the script run by its path as well as with `python -m`.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples import common


def split() -> list[Any]:
    """Training features, held-out features, training labels (0, 1, 2) and held-out labels."""
    features, labels = load_iris(return_X_y=True)
    parts = train_test_split(
        features.astype(np.float32), labels, test_size=0.3, stratify=labels, random_state=common.SEED
    )
    return list(parts)


def _convert(classifier: Any, name: str, doc: str, zipmap: bool) -> Any:
    model = convert_sklearn(
        classifier,
        initial_types=[("X", FloatTensorType([None, 4]))],
        options={id(classifier): {"zipmap": zipmap}},
        target_opset=dict(common.OPSETS),
    )
    return common.finish(model, name, doc)


def iris() -> common.Example:
    """Integer labels and a plain probability tensor."""
    train_x, test_x, train_y, test_y = split()
    classifier = common.logistic_regression().fit(train_x.astype(np.float64), train_y)
    model = _convert(classifier, "iris", "Logistic regression on the iris data set.", zipmap=False)
    return common.Example("iris", model, note=f"held-out accuracy {classifier.score(test_x, test_y):.3f}")


def iris_forest() -> common.Example:
    """String labels and skl2onnx's default probability output, a sequence of maps from label to probability."""
    train_x, test_x, train_y, test_y = split()
    names = load_iris().target_names
    classifier = RandomForestClassifier(n_estimators=20, max_depth=5, random_state=common.SEED)
    classifier.fit(train_x, names[train_y])
    model = _convert(classifier, "iris_forest", "Random forest on the iris data set, string labels.", zipmap=True)
    accuracy = classifier.score(test_x, names[test_y])
    return common.Example("iris_forest", model, note=f"held-out accuracy {accuracy:.3f}")


BUILDERS: dict[str, common.Builder] = {"iris": iris, "iris_forest": iris_forest}

if __name__ == "__main__":
    common.main(__doc__, BUILDERS)
