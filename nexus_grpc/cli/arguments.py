"""What people write on the command line, read strictly: durations, labels, shares."""

import itertools
import re
from collections.abc import Sequence

import typer

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


def parse_duration(text: str) -> float:
    """Seconds: "10m", "30s", "1h30m", "500ms"; a bare number is seconds.

    Raises:
        typer.BadParameter: it is no duration, or none at all.
    """
    compact = text.replace(" ", "")
    if re.fullmatch(r"\d+(\.\d+)?", compact):
        seconds = float(compact)
    elif _DURATION_PART.sub("", compact) == "" and compact:
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in _DURATION_PART.findall(compact))
    else:
        raise typer.BadParameter(f"{text!r} is no duration; expected such as 30s, 10m, 1h or 1h30m")
    if not 0 < seconds < float("inf"):
        raise typer.BadParameter(f"{text!r} is no time at all; expected such as 30s, 10m, 1h or 1h30m")
    return seconds


def duration_text(seconds: float) -> str:
    """The way people write it: 90 is "1m30s"."""
    whole = round(seconds)
    if whole != seconds and seconds < 60:
        return f"{seconds:g}s"
    parts = ((whole // 3600, "h"), (whole // 60 % 60, "m"), (whole % 60, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "0s"


def parse_labels(words: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE words.

    Raises:
        typer.BadParameter: one has no "=", no key, or a key comes twice.
    """
    labels: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{word!r} is no label; expected KEY=VALUE", param_hint="--label")
        if key in labels:
            raise typer.BadParameter(f"label {key!r} is given twice", param_hint="--label")
        labels[key] = value
    return labels


def parse_percent(text: str) -> float:
    """0 to 100; a "%" at the end is fine.

    Raises:
        typer.BadParameter: it is no such number.
    """
    try:
        percent = float(text.strip().removesuffix("%"))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no percentage; expected 0 to 100") from None
    if not 0 <= percent <= 100:
        raise typer.BadParameter(f"{text!r} is out of range; expected 0 to 100")
    return percent


def parse_shares(words: Sequence[str], option: str) -> list[tuple[str, float]]:
    """VERSION=PERCENT words.

    Raises:
        typer.BadParameter: one is no such thing.
    """
    shares = []
    for word in words:
        version, equals, percent = word.partition("=")
        if not equals or not version:
            raise typer.BadParameter(f"{word!r} is no share; expected VERSION=PERCENT, such as 3=10", param_hint=option)
        shares.append((version, parse_percent(percent)))
    return shares


def parse_steps(text: str) -> list[float]:
    """Percentages separated by commas.

    Raises:
        typer.BadParameter: they are not, or do not rise.
    """
    steps = [parse_percent(part) for part in text.split(",")]
    if any(after <= before for before, after in itertools.pairwise(steps)):
        raise typer.BadParameter(f"{text!r} does not rise; expected such as 5,25,50,100", param_hint="STEPS")
    return steps
