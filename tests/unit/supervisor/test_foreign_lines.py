"""What libraries write becomes events, with the library's own level and without its colours and clock."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexus_grpc.supervisor.foreign_lines import LINES_MAX, TRACEBACK_CHARS_MAX, ForeignEvent, Gatherer

# As the libraries wrote them, versions of requirements.lock.
ORT = "2026-11-30 20:26:14.845231925 [{}:onnxruntime:, graph.cc:5777 CleanUnusedInitializersAndNodeArgs] Removing 'x'."
GRPC = "{}1130 20:26:09.615471    3946 chttp2_transport.cc:1118] W:0x7f5a SERVER [unix:] state IDLE -> WRITING"
ENVOY = "[2026-11-30 20:26:14.845][1234][{}][main] [source/server/server.cc:412] cannot bind: in use"
ROW = ("onnxruntime", "Removing 'x'.", "graph.cc:5777 CleanUnusedInitializersAndNodeArgs")
SERVER = ("grpc", "W:0x7f5a SERVER [unix:] state IDLE -> WRITING", "chttp2_transport.cc:1118")
BIND = ("envoy", "cannot bind: in use", "source/server/server.cc:412")
HEAD = "Traceback (most recent call last):"
LEAF = f'{HEAD}\n  File "a.py", line 1, in <module>\n    1 / 0\n    ~~^~~\nZeroDivisionError: no'
CHAINED = f"{LEAF}\n\nDuring handling of the above exception, another exception occurred:\n\n{LEAF[:-2]}again"
FATAL = """\
Fatal Python error: Segmentation fault

Thread 0x00007f08839fd6c0 (most recent call first):
  File "worker.py", line 107 in _load_from

Current thread 0x00007f0 (most recent call first):
  File "ring.py", line 221 in sleep

Extension modules: numpy._core._multiarray_umath (total: 1)"""


def events_of(text: str, role: str = "front") -> list[ForeignEvent]:
    gatherer = Gatherer(role)
    found = [gatherer.add(line) for line in text.encode("utf-8", "surrogateescape").split(b"\n")]
    return [event for event in (*found, gatherer.end()) if event is not None]


def said(text: str, role: str = "front") -> list[tuple[str, str, str]]:
    """(level, logger, event) of each."""
    return [(event.level, event.logger, str(event.fields()["event"])) for event in events_of(text, role)]


@pytest.mark.parametrize(
    ("line", "level", "expected"),
    [
        (f"\x1b[0;93m{ORT.format('W')}\x1b[m", "warning", ROW),
        (f"\x1b[1;31m{ORT.format('E')}\x1b[m", "error", ROW),
        (f"\x1b[0;41m{ORT.format('F')}\x1b[m", "error", ROW),
        (ORT.format("I"), "info", ROW),
        (ORT.format("V"), "debug", ROW),
        (ORT.format("W").replace("onnxruntime:,", "onnxruntime:Default,"), "warning", ROW),
        (GRPC.format("I"), "info", SERVER),
        (GRPC.format("W"), "warning", SERVER),
        (GRPC.format("E"), "error", SERVER),
        (GRPC.format("F"), "error", SERVER),
        ("E0000 00:00:1764533.12   99 a.cc:12] gone", "error", ("grpc", "gone", "a.cc:12")),
        (ENVOY.format("trace"), "debug", BIND),
        (ENVOY.format("info"), "info", BIND),
        (ENVOY.format("warning"), "warning", BIND),
        (ENVOY.format("critical"), "error", BIND),
        ("[2026-11-30 20:26:14.845][1][warning] text", "warning", ("envoy", "text", "")),
        ("/a b/c.py:50: DeprecationWarning: old", "warning", ("python", "DeprecationWarning: old", "/a b/c.py:50")),
    ],
)
def test_what_libraries_write(line: str, level: str, expected: tuple[str, str, str]) -> None:
    [event] = events_of(line)
    fields = event.fields()
    assert event.level == level
    assert (fields["logger"], fields["event"], fields.get("source", "")) == expected


def test_abseil_is_of_whoever_has_it_there() -> None:
    assert [said(GRPC.format("I"), role)[0][1] for role in ("front", "worker", "trial", "envoy")] == [
        "grpc",
        "onnxruntime",
        "onnxruntime",
        "envoy",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "free(): invalid pointer",
        "double free or corruption (out)",
        "malloc(): corrupted top size",
        "*** stack smashing detected ***: terminated",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "python3: ../nptl/x.c:12: lock: Assertion `mutex' failed.",
    ],
)
def test_the_last_words_of_a_process_are_errors(line: str) -> None:
    assert said(line) == [("error", "stderr", line)]


def test_other_lines_are_events_each() -> None:
    assert said("one\ntwo\n\n\nthree") == [("warning", "stderr", text) for text in ("one", "two", "three")]


def test_what_is_indented_belongs_to_the_line_before() -> None:
    assert said("a.py:1: UserWarning: no\n  warnings.warn('no')\nnext") == [
        ("warning", "python", "UserWarning: no\n  warnings.warn('no')"),
        ("warning", "stderr", "next"),
    ]


@pytest.mark.parametrize(
    ("text", "event"),
    [
        (LEAF, "ZeroDivisionError: no"),
        (CHAINED, "ZeroDivisionError: again"),
        (f"Exception in thread Thread-1 (work):\n{LEAF}", "ZeroDivisionError: no"),
        (f"Exception ignored in: <function f at 0x7f>\n{LEAF}", "ZeroDivisionError: no"),
        (FATAL, "Fatal Python error: Segmentation fault"),
    ],
)
def test_a_traceback_is_one_event(text: str, event: str) -> None:
    [found] = events_of(text)
    assert (found.level, found.logger) == ("error", "python")
    assert found.fields() == {"event": event, "logger": "python", "exception": text}


def test_what_something_known_begins_is_no_part_of_a_traceback() -> None:
    assert [logger for _, logger, _ in said(f"{LEAF}\n{ORT.format('E')}\n{LEAF}\n{LEAF}\nfree(): x")] == [
        "python",
        "onnxruntime",
        "python",
        "python",
        "stderr",
    ]


def test_a_long_traceback_keeps_its_beginning_and_end() -> None:
    text = "\n".join(
        [LEAF.split("\n")[0], *(f'  File "a.py", line {n}, in f' for n in range(3 * LINES_MAX // 4)), "E: y"]
    )
    fields = events_of(text)[0].fields()
    assert len(str(fields["exception"])) < TRACEBACK_CHARS_MAX + 10
    assert str(fields["exception"]).startswith("Traceback")
    assert str(fields["exception"]).endswith("E: y")


def test_an_event_s_lines_are_limited() -> None:
    [event] = events_of("one\n" + " more\n" * 1000)
    assert len(event.lines) == LINES_MAX
    assert event.fields()["left_out_count"] == 1002 - LINES_MAX


def test_bytes_that_are_no_text() -> None:
    [event] = events_of("\x1b[31mbad \udcff\udcfe \x1b]0;title\x07end")
    assert event.fields()["event"] == "bad \ufffd\ufffd end"


LINE = st.one_of(
    st.binary(max_size=100),
    st.sampled_from([*LEAF.encode().split(b"\n"), *CHAINED.encode().split(b"\n"), *FATAL.encode().split(b"\n")]),
    st.sampled_from([each.format(level).encode() for each in (ORT, GRPC, ENVOY) for level in "IWE"]),
)


@given(lines=st.lists(LINE, max_size=30), role=st.sampled_from(["front", "worker", "trial", "envoy"]))
def test_every_line_that_says_something_is_in_one_event(lines: Sequence[bytes], role: str) -> None:
    gatherer = Gatherer(role)
    found = [event for event in (*(gatherer.add(line) for line in lines), gatherer.end()) if event is not None]
    begun = [line for line in lines if line.decode("utf-8", "replace").strip()]
    assert sum(len(event.lines) for event in found) >= min(1, len(found))
    assert len(found) <= len(begun)
    for event in found:
        assert event.level in ("debug", "info", "warning", "error")
        assert not gatherer.is_holding
        fields = event.fields()
        assert isinstance(fields["event"], str)
