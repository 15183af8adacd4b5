"""Diabetes progression: a ridge regression that is double precision from input to output."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import DoubleTensorType
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split

# Lets the script run by its path as well as with `python -m`.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples import common


def split() -> list[Any]:
    """Training features, held-out features, training targets and held-out targets."""
    features, targets = load_diabetes(return_X_y=True)
    return list(train_test_split(features, targets, test_size=0.25, random_state=common.SEED))


def fit() -> Ridge:
    """The regression as scikit-learn has it, rounded where processors begin to disagree."""
    train_x, _, train_y, _ = split()
    regression = Ridge(alpha=0.05).fit(train_x, train_y)
    regression.coef_ = np.round(regression.coef_, 9)
    regression.intercept_ = np.round(regression.intercept_, 9)
    return regression


def diabetes_f64() -> common.Example:
    """The regression as ONNX, with skl2onnx's own output name."""
    regression = fit()
    _, test_x, _, test_y = split()
    model = convert_sklearn(
        regression, initial_types=[("X", DoubleTensorType([None, 10]))], target_opset=dict(common.OPSETS)
    )
    common.finish(model, "diabetes_f64", "Ridge regression on the diabetes data set, double precision.")
    return common.Example("diabetes_f64", model, note=f"held-out R2 {regression.score(test_x, test_y):.3f}")


BUILDERS: dict[str, common.Builder] = {"diabetes_f64": diabetes_f64}

if __name__ == "__main__":
    common.main(__doc__, BUILDERS)
