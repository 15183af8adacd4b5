"""Are a model's requests run together, and why? What config.pbtxt says counts; without it, the proof (rowproof/).

The trial's veto comes with the order to load: see probe.py.
"""

import dataclasses

from .model import EqualSizes
from .session import OpenedSession

SET_IT = "if its rows are independent all the same, set max_batch_size in config.pbtxt"


@dataclasses.dataclass(frozen=True, slots=True)
class Batching:
    """`text` is for the model's owner; `equal_sizes` see Model."""

    is_proved: bool
    text: str
    equal_sizes: EqualSizes = ()


def declared(max_batch_size: int) -> str:
    """The text where config.pbtxt decides."""
    return f"as config.pbtxt says: max_batch_size {max_batch_size}"


def vetoed(reason: str) -> Batching:
    return Batching(False, f"requests are not batched: {reason}; {SET_IT}")


def derived(path: str, opened: OpenedSession, veto: str) -> Batching:
    """What holds where config.pbtxt says nothing. Never raises."""
    if veto:
        return vetoed(veto)
    # onnx takes 0.2 s and 12 MB: not for workers whose models all say what they want.
    from .rowproof.proof import prove_file

    proof = prove_file(path)
    if not proof.rows_apart:
        return Batching(False, proof.text)
    reason = _undeclared(opened)
    return vetoed(reason) if reason else Batching(True, proof.text, proof.equal_sizes)


def _undeclared(opened: OpenedSession) -> str:
    """What the model's inputs declare against a batch; empty where they declare one. What it declares of its outputs is
    not asked: exporters write 1 for the number of rows, and the proof knows better."""
    for spec in opened.inputs:
        if spec.shape[:1] != (-1,):
            return f"'{spec.name}' is declared with a first dimension of one size"
    if len(opened.batch_symbols) != 1:
        return "its inputs call their first dimensions by different names"
    return ""
