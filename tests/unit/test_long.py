"""tests/long.py: all of the long tests run in as many days as there are parts."""

import datetime
import pathlib

import pytest

from tests import long

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py") if "mark.long" in path.read_text()
)


def runs_long(part: long.Part, file: str) -> bool:
    """Whether a part runs the long tests of a file."""
    if "not long" in part.options or f"--ignore={file}" in part.options:
        return False
    return any(file == option or file.startswith(f"{option}/") for option in part.options)


@pytest.mark.parametrize("file", [file for file in FILES if file != "tests/unit/test_long.py"])
def test_each_is_in_one_part(file: str) -> None:
    assert [part.name for part in long.PARTS if runs_long(part, file)] != []


def test_what_is_named_is_there() -> None:
    for part in long.PARTS:
        for option in part.options:
            path = option.removeprefix("--ignore=")
            assert not path.startswith("tests/") or (ROOT / path).exists(), path


def test_each_has_its_day(monkeypatch: pytest.MonkeyPatch) -> None:
    class Day(datetime.date):
        @classmethod
        def today(cls) -> datetime.date:
            return day

    monkeypatch.setattr(long.datetime, "date", Day)
    due = []
    for number in range(len(long.PARTS)):
        day = datetime.date.fromordinal(738_000 + number)
        due.append(long.due())
    assert sorted(due) == list(range(len(long.PARTS)))


@pytest.mark.parametrize("which", ["0", str(len(long.PARTS) + 1), "tomorrow", "-1"])
def test_no_such_part(which: str) -> None:
    with pytest.raises(SystemExit, match=f"no such part: '{which}'; expected all, today, or 1 to {len(long.PARTS)}"):
        long.main(which)
