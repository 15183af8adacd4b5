"""What people write on the command line."""

from collections.abc import Callable
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from nexus_grpc.cli.arguments import (
    duration_text,
    parse_duration,
    parse_labels,
    parse_percent,
    parse_shares,
    parse_steps,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10m", 600),
        ("30s", 30),
        ("1h", 3600),
        ("1h30m", 5400),
        ("1d", 86400),
        ("500ms", 0.5),
        ("1.5s", 1.5),
        ("90", 90),
        ("1h 30m", 5400),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "m", "10x", "ten", "-5s", "0", "0s", "1e3", "10m5", "5 m x", "inf", "nan"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="expected such as 30s, 10m, 1h or 1h30m"):
        parse_duration(text)


@given(st.integers(1, 10**7))
def test_durations_read_as_they_are_written(seconds: int) -> None:
    assert parse_duration(duration_text(seconds)) == seconds


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (0.25, "0.25s"), (59, "59s"), (90, "1m30s"), (3600.4, "1h")])
def test_durations_are_written_briefly(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_labels() -> None:
    assert parse_labels(["team=fraud", "note=a=b", "empty="]) == {"team": "fraud", "note": "a=b", "empty": ""}


def test_shares() -> None:
    assert parse_shares(["2=20", "v3=10.5%"], "--share") == [("2", 20.0), ("v3", 10.5)]


def test_steps() -> None:
    assert parse_steps("5,25%, 50,100") == [5, 25, 50, 100]


@pytest.mark.parametrize(
    ("read", "given_words", "message"),
    [
        (parse_labels, ["team"], "expected KEY=VALUE"),
        (parse_labels, ["=fraud"], "expected KEY=VALUE"),
        (parse_labels, ["a=1", "a=2"], "'a' is given twice"),
        (lambda words: parse_shares(words, "--share"), ["2"], "expected VERSION=PERCENT"),
        (lambda words: parse_shares(words, "--share"), ["2=much"], "expected 0 to 100"),
        (parse_percent, "101", "expected 0 to 100"),
        (parse_percent, "-1", "expected 0 to 100"),
        (parse_percent, "nan", "expected 0 to 100"),
        (parse_percent, "", "expected 0 to 100"),
        (parse_steps, "5,5", "does not rise"),
        (parse_steps, "50,25", "does not rise"),
        (parse_steps, "5,,25", "expected 0 to 100"),
    ],
)
def test_what_is_wrong_is_said(read: Callable[[Any], Any], given_words: Any, message: str) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        read(given_words)
