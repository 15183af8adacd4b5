"""Which name was probably meant."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_grpc.ipc.similar import Similar

NAMES = ("iris", "fraud-v2", "BertBase", "ab", "x")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("Iris", "iris"),
        ("irs", "iris"),
        ("irris", "iris"),
        ("irix", "iris"),
        ("irsi", "iris"),
        ("fraud_v2", "fraud-v2"),
        ("FraudV2", "fraud-v2"),
        ("bert-base", "BertBase"),
        ("AB", "ab"),
        ("a", ""),
        ("ac", ""),
        ("y", ""),
        ("churn", ""),
        ("", ""),
        ("..", ""),
        ("i" * 1_000_000, ""),
    ],
)
def test_what_was_meant(wrong: str, right: str) -> None:
    assert Similar(NAMES).to(wrong) == right


WORDS = st.text("abcdefgh", min_size=4, max_size=12)


@given(st.sets(WORDS, min_size=1, max_size=5), st.data())
def test_one_letter_more_or_less_finds_a_name(names: set[str], data: st.DataObject) -> None:
    name, index = data.draw(st.sampled_from(sorted(names))), data.draw(st.integers(0, 3))
    assert Similar(names).to(name) == name
    before, after = name[:index], name[index + 1 :]
    for wrong in (before + after, before + "z" + name[index:], before + "z" + after):
        assert Similar(names).to(wrong) in names


@given(st.lists(st.text(max_size=60), max_size=5), st.text(max_size=60))
def test_any_text_may_be_asked_for(names: list[str], name: str) -> None:
    assert Similar(names).to(name) in {*names, ""}


def test_asking_costs_little_however_many_there_are() -> None:
    """Whoever may ask may ask often."""
    similar = Similar(f"model-number-{number:04}" for number in range(2_000))
    similar.to("first")
    began_s = time.perf_counter()
    for number in range(100):
        similar.to(f"no-such-model-as-{number}-or-another")
    assert time.perf_counter() - began_s < 0.5
