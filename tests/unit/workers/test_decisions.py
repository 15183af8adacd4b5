"""Probabilities, a threshold, a decision: and what does not fit a model is refused when it loads."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from nexus_grpc.config_parameters import DecisionPolicy
from nexus_grpc.ipc.errors import ModelNotServable
from nexus_grpc.worker.decisions import confidence_of, decision_of, verdict
from nexus_grpc.worker.model import Model
from tests.unit.support import floats, model_of, spec


def classifier(classes: int = 2, datatype: str = "FP32", **policy: Any) -> Model:
    model = model_of(outputs=[spec("label", "INT64", -1), spec("probabilities", datatype, -1, classes)])
    if policy:
        model.decision = decision_of(dataclasses.asdict(DecisionPolicy(**policy)), model)
    return model


FRAUD = {"labels": ("fine", "fraud"), "threshold": 0.41, "positive": "block", "negative": "allow"}


@pytest.mark.parametrize(
    ("probability", "expected"),
    [
        (0.0, ("fine", "allow", 0.41)),
        (0.40, ("fine", "allow", 0.41)),
        (0.42, ("fraud", "block", 0.41)),
        (1.0, ("fraud", "block", 0.41)),
    ],
)
def test_the_threshold_decides(probability: float, expected: tuple[str, str, float]) -> None:
    assert verdict(classifier(**FRAUD), [1 - probability, probability]) == expected


@pytest.mark.parametrize("threshold", [0.1, 0.41, 0.7, 0.9])
@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_what_a_model_calls_the_threshold_reaches_it(threshold: float, datatype: str) -> None:
    model = classifier(datatype=datatype, threshold=threshold)
    as_given: float = np.asarray(threshold, model.outputs[1].datatype.dtype).item()
    below: float = np.nextafter(np.asarray(threshold, model.outputs[1].datatype.dtype), 0).item()
    assert verdict(model, [0.0, as_given]) == ("1", "positive", threshold)
    assert verdict(model, [0.0, below]) == ("0", "negative", threshold)


def test_without_a_threshold_the_likeliest_class_is_named() -> None:
    assert verdict(classifier(3), [0.2, 0.5, 0.3]) == ("1", "", 0.0)
    assert verdict(classifier(3, labels=("a", "b", "c")), [0.2, 0.5, 0.3]) == ("b", "", 0.0)
    assert verdict(classifier(1), [0.7]) == ("1", "", 0.0)
    assert verdict(classifier(1, labels=("ham", "spam")), [0.4]) == ("ham", "", 0.0)


def test_of_many_classes_the_positive_one_or_the_likeliest_other() -> None:
    model = classifier(3, labels=("cat", "dog", "wolf"), positive_class="wolf", threshold=0.2)
    assert verdict(model, floats([0.7, 0.1, 0.2])[0].tolist()) == ("wolf", "positive", 0.2)
    assert verdict(model, [0.4, 0.5, 0.1]) == ("dog", "negative", 0.2)
    by_number = classifier(3, positive_class="0", threshold=0.9)
    assert verdict(by_number, [0.8, 0.05, 0.15]) == ("2", "negative", 0.9)


@pytest.mark.parametrize("positive", ["", "spam", "1"])
def test_one_probability_is_the_second_class(positive: str) -> None:
    model = classifier(1, labels=("ham", "spam"), positive_class=positive, threshold=0.8)
    assert verdict(model, [0.79]) == ("ham", "negative", 0.8)
    assert verdict(model, [0.81]) == ("spam", "positive", 0.8)


@pytest.mark.parametrize("probabilities", [[], [float("nan")] * 2, [0.7, float("nan")], [float("nan"), 0.7]])
def test_nothing_to_say(probabilities: list[float]) -> None:
    assert verdict(classifier(**FRAUD), probabilities) == verdict(classifier(), probabilities) == ("", "", 0.0)
    assert confidence_of(probabilities) is None


@pytest.mark.parametrize(
    ("classes", "policy", "message"),
    [
        (3, {"labels": ("a", "b")}, "has 2 labels, output 'probabilities' has 3 classes"),
        (1, {"labels": ("a", "b", "c")}, "has 3 labels, output 'probabilities' has 2 classes"),
        (3, {"threshold": 0.5}, "must say which of 3 classes is the positive_class"),
        (2, {"threshold": 0.5, "positive_class": "2"}, "positive_class '2' is no class; there is: 0 to 1"),
        (2, {"labels": ("a", "b"), "threshold": 0.5, "positive_class": "c"}, "is no class; there is: a, b"),
        (2, {"threshold": 0.5, "positive_class": "9" * 5000}, "is no class"),
        (1, {"labels": ("a", "b"), "threshold": 0.5, "positive_class": "a"}, "the second class alone"),
    ],
)
def test_what_does_not_fit_is_refused(classes: int, policy: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelNotServable) as caught:
        classifier(classes, **policy)
    assert message in caught.value.message


def test_a_model_without_probabilities_decides_nothing() -> None:
    model = model_of(outputs=[spec("y", "FP32", -1, 2)])
    assert decision_of(None, model) is None
    with pytest.raises(ModelNotServable, match="no output is probabilities"):
        decision_of(dataclasses.asdict(DecisionPolicy(threshold=0.5)), model)
