"""What a model may be called, and which of two names that differ by case only may stay."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_grpc.access.keys import check_patterns
from nexus_grpc.ipc.errors import InvalidInput
from nexus_grpc.ipc.model_names import CHARACTERS_MAX, RESERVED, check_model_name, is_model_name, newcomers, taken_text

# Triton's rule, written independently of the module.
NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z").filter(
    lambda name: ".." not in name and name not in ("info", "upload")
)
ANYTHING = st.one_of(st.text(max_size=140), st.text("aZ0._-", max_size=140))


@given(NAMES)
def test_what_is_a_name(name: str) -> None:
    assert is_model_name(name)
    check_model_name(name)
    assert check_patterns([name, f"{name[:100]}*"])


@given(ANYTHING)
def test_nothing_else_is(name: str) -> None:
    allowed = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name) and ".." not in name and name not in RESERVED
    assert is_model_name(name) == bool(allowed)


@pytest.mark.parametrize("name", ["BertBase", "0", "a.b_c-d", "a" * CHARACTERS_MAX, "Info"])
def test_names(name: str) -> None:
    assert is_model_name(name)


@pytest.mark.parametrize("name", ["", "lost+found", "-x", "_x", "a..b", "a b", "ü", "İris", "a\n", "a" * 129, "info"])
def test_what_is_refused_and_what_is_said(name: str) -> None:
    with pytest.raises(InvalidInput) as failure:
        check_model_name(name)
    assert failure.value.field == "id"
    assert failure.value.message == (
        "the id must be 1 to 128 letters (a-z, A-Z), digits, '.', '_' and '-', beginning with"
        " a letter or digit, without '..', and neither `info` nor `upload`"
    )


@given(st.lists(NAMES, unique=True), st.data())
def test_the_newcomer_is_refused(names: list[str], data: st.DataObject) -> None:
    names = sorted({*names, *(name.swapcase() for name in names if is_model_name(name.swapcase()))})
    known = data.draw(st.sets(st.sampled_from(names))) if names else set()
    refused = newcomers(names, known)
    kept = set(names) - set(refused)
    assert known <= kept, "who is there stays"
    for name, holder in refused.items():
        assert holder in kept
        assert name != holder
        assert name.lower() == holder.lower()
    new = [name.lower() for name in kept - known]
    assert len(new) == len(set(new)), "one of each"
    assert not set(new) & {name.lower() for name in known}


def test_what_a_newcomer_is_told() -> None:
    assert newcomers(["IRIS", "Iris", "wine"], {"iris"}) == {"IRIS": "iris", "Iris": "iris"}
    assert taken_text("Iris", "iris") == (
        "'Iris' differs from the model 'iris' by case only; give it another name, or delete 'iris' first"
    )
