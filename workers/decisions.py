"""What a classifier's probabilities decide: the class, and what reaching a threshold, or not, is called."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nexus_grpc.ipc.errors import ModelNotServable

from .model import Decision, Model

# Of a name that is none, in a message.
NAME_SHOWN_MAX = 80


class Verdict(NamedTuple):
    """One row's. Empty and 0 where nothing can be said."""

    predicted_class: str = ""
    decision: str = ""
    threshold_used: float = 0.0


_NOTHING = Verdict()


def decision_of(policy: dict[str, Any] | None, model: Model) -> Decision | None:
    """The model's decision, checked against its outputs.

    Args:
        policy: nexus_grpc.model_config.DecisionPolicy as plain values; None without one.

    Raises ModelNotServable when they do not fit together.
    """
    if policy is None:
        return None
    if model.probabilities_index < 0:
        raise ModelNotServable(
            f"config.pbtxt of '{model.name}' sets labels or a decision, but no output is probabilities"
        )
    spec = model.outputs[model.probabilities_index]
    labels = tuple(policy["labels"]) or spec.labels
    count = spec.shape[-1] if spec.shape else -1
    classes = 2 if count == 1 else count
    if policy["labels"] and classes > 1 and len(labels) != classes:
        raise ModelNotServable(
            f"config.pbtxt of '{model.name}' has {len(labels)} labels, output '{spec.name}' has {classes} classes"
        )
    threshold = policy["threshold"]
    if threshold is None:
        return Decision(labels, 0, None, 0.0, "", "")
    return Decision(
        labels=labels,
        positive_index=_positive_index(model.name, policy["positive_class"], labels, count),
        threshold=threshold,
        limit=float(np.asarray(threshold, spec.datatype.dtype)),
        positive_name=policy["positive"],
        negative_name=policy["negative"],
    )


def _positive_index(name: str, positive: str, labels: Sequence[str], count: int) -> int:
    """Where the positive class's probability stands. `count` of a row's probabilities; -1: that varies.

    A single probability is the second class's (as of scikit-learn's and Keras' binary classifiers).
    """
    if not positive:
        if count not in (-1, 1, 2):
            raise ModelNotServable(f"config.pbtxt of '{name}' must say which of {count} classes is the positive_class")
        return 0 if count == 1 else 1
    index = _class_index(positive, labels, 2 if count == 1 else count)
    if index < 0:
        positive = positive if len(positive) <= NAME_SHOWN_MAX else positive[:NAME_SHOWN_MAX] + "…"
        known = ", ".join(labels) or (f"0 to {max(count, 2) - 1}" if count > 0 else "their numbers")
        raise ModelNotServable(f"config.pbtxt of '{name}': positive_class '{positive}' is no class; there is: {known}")
    if count == 1 and index == 0:
        raise ModelNotServable(
            f"config.pbtxt of '{name}': positive_class is '{positive}', but the model gives the probability of the"
            " second class alone"
        )
    return 0 if count == 1 else index


def _class_index(name: str, labels: Sequence[str], count: int) -> int:
    """A class by its label or its number; -1 without one."""
    if name in labels:
        return list(labels).index(name)
    is_number = name.isascii() and name.isdecimal() and len(name) < 10
    return int(name) if is_number and (count < 0 or int(name) < count) else -1


def confidence_of(probabilities: Sequence[Any]) -> float | None:
    """The largest of one row's probabilities; None without any, and where one is no finite number."""
    if not probabilities or not math.isfinite(sum(probabilities)):
        return None
    return float(max(probabilities))


def verdict(model: Model, probabilities: Sequence[Any]) -> Verdict:
    """What one row's probabilities (of the model's classes, or of the positive one alone) say; nothing of NaN."""
    if not probabilities or not isinstance(probabilities[0], float) or confidence_of(probabilities) is None:
        return _NOTHING
    predicted_class = _class_name(model, predicted_index(model, probabilities))
    decision = _threshold_of(model, probabilities)
    if decision is None or decision.threshold is None:
        return Verdict(predicted_class)
    is_positive = probabilities[decision.positive_index] >= decision.limit
    return Verdict(
        predicted_class, decision.positive_name if is_positive else decision.negative_name, decision.threshold
    )


def _threshold_of(model: Model, probabilities: Sequence[float]) -> Decision | None:
    """The decision, where it has a threshold for one of these probabilities."""
    decision = model.decision
    is_there = decision is not None and decision.threshold is not None and decision.positive_index < len(probabilities)
    return decision if is_there else None


def predicted_index(model: Model, probabilities: Sequence[Any]) -> int:
    """The class that these say: the likeliest; with a threshold the positive one, or the likeliest other."""
    decision = _threshold_of(model, probabilities)
    if decision is None:
        return _likeliest(probabilities)
    is_positive = probabilities[decision.positive_index] >= decision.limit
    if len(probabilities) == 1:
        return int(is_positive)
    if is_positive:
        return decision.positive_index
    others = [-1.0 if index == decision.positive_index else p for index, p in enumerate(probabilities)]
    return _likeliest(others)


def positive_probability(model: Model, probabilities: Sequence[Any]) -> float | None:
    """That of the class that a decision is about: the configuration's, else the second of two; None of more classes."""
    decision = _threshold_of(model, probabilities)
    if decision is not None:
        return float(probabilities[decision.positive_index])
    return float(probabilities[-1]) if len(probabilities) in (1, 2) else None


def _likeliest(probabilities: Sequence[float]) -> int:
    """The likeliest class; of one probability, whether it is the second one."""
    if len(probabilities) == 1:
        return int(probabilities[0] >= 0.5)
    return max(range(len(probabilities)), key=probabilities.__getitem__)


def _class_name(model: Model, index: int) -> str:
    labels = model.class_labels
    return labels[index] if index < len(labels) else str(index)
