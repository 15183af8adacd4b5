"""What libraries write to standard error, as events: ONNX Runtime, grpc, Envoy, Python, the C library.

Lines in (`Gatherer.add`), events out. Each line begins an event, with two exceptions: one that is indented or empty
belongs to the line before, and to a traceback belongs whatever follows, until a line comes that a pattern below knows.
"""

import dataclasses
import re

TRACEBACK_CHARS_MAX = 4000
LINES_MAX = 200

# CSI and OSC sequences, and the two-character ones: ECMA-48.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_LEVELS = {
    **{"V": "debug", "I": "info", "W": "warning", "E": "error", "F": "error"},
    **{"trace": "debug", "debug": "debug", "info": "info", "warning": "warning", "error": "error", "critical": "error"},
}
# What follows is linear in the length of a line, which a worker may have sent that was taken over.
# 2026-11-30 20:26:14.845231925 [W:onnxruntime:, graph.cc:5777 CleanUnusedInitializers] Removing initializer …
_ONNXRUNTIME = re.compile(
    r"(?:\d{4}-\d\d-\d\d [\d:.]+ )?\[(?P<level>[VIWEF]):[^\],]*, (?P<source>[^\]]+)\] ?(?P<text>.*)"
)
# I1130 20:26:09.615471    3946 chttp2_transport.cc:1118] …     (abseil, before its set-up with 00:00:1764533.123456)
_ABSEIL = re.compile(r"(?P<level>[IWEF])\d{4} [\d:.]+ +\d+ (?P<source>[^\s\]]+:\d+)\] ?(?P<text>.*)")
# [2026-11-30 20:26:14.845][1234][critical][main] [source/server/server.cc:412] …
_ENVOY = re.compile(
    r"\[\d{4}-\d\d-\d\d [\d:.]+\]\[\d+\]\[(?P<level>\w+)\](?:\[\w*\])? ?(?:\[(?P<source>[^\s\]]+:\d+)\] )?(?P<text>.*)"
)
# /usr/lib/python3.11/ast.py:50: DeprecationWarning: …
_PYTHON_WARNING = re.compile(r"(?P<source>\S.*?:\d+): (?P<text>\w+Warning: .*)")
_TRACEBACK = re.compile(
    r" *\+? ?(?:Exception Group )?Traceback \(most recent call last\):|Exception (?:in|ignored) |Fatal Python error: "
)
# The C library, the C++ one and the shell's words for a signal: a process is about to end.
_DEATH = re.compile(
    r"(?:free|munmap_chunk|\w*alloc\w*)\(\): |double free|corrupted |\*\*\* |terminate called|.*: Assertion [`']"
)


@dataclasses.dataclass(slots=True)
class ForeignEvent:
    """One event; `lines` is its whole text, and its first line what it is about but for a traceback."""

    level: str
    logger: str
    lines: list[str]
    source: str = ""
    is_traceback: bool = False
    left_out_count: int = 0

    def fields(self) -> dict[str, str | int]:
        """The text as `event`, and what else is known: `logger`, `source`, `exception`, `left_out_count`."""
        fields: dict[str, str | int] = {"event": self._summary(), "logger": self.logger}
        if self.source:
            fields["source"] = self.source
        if self.is_traceback and len(self.lines) > 1:
            fields["exception"] = _middle_cut("\n".join(self.lines))
        if self.left_out_count:
            fields["left_out_count"] = self.left_out_count
        return fields

    def _summary(self) -> str:
        if not self.is_traceback:
            return "\n".join(self.lines).rstrip()
        if self.lines[0].startswith("Fatal"):
            return self.lines[0]
        # What was raised comes last, and is not indented.
        return next((line for line in reversed(self.lines) if line and not line[0].isspace()), self.lines[0])


def _middle_cut(text: str) -> str:
    """Where it began and what was raised matter most."""
    if len(text) <= TRACEBACK_CHARS_MAX:
        return text
    return f"{text[: TRACEBACK_CHARS_MAX // 4]}\n…\n{text[-TRACEBACK_CHARS_MAX * 3 // 4 :]}"


def _is_unfinished(event: ForeignEvent) -> bool:
    """Whether a traceback that begins now belongs to this one: after "Exception in thread Thread-1:", or "During the
    handling of the above exception, another exception occurred:"."""
    if not event.is_traceback:
        return False
    last = next((line for line in reversed(event.lines) if line), "")
    return len(event.lines) == 1 or ("exception" in last and last.endswith(":"))


class Gatherer:
    """Makes events of lines. Never raises.

    Args:
        role: whose lines: front, worker, trial or envoy. It tells whose abseil it is.
    """

    def __init__(self, role: str) -> None:
        self._abseil_is = {"front": "grpc", "envoy": "envoy"}.get(role, "onnxruntime")
        self._event: ForeignEvent | None = None

    @property
    def is_holding(self) -> bool:
        return self._event is not None

    def add(self, line: bytes) -> ForeignEvent | None:
        """One line, without its end. Returns the event before it, which is complete now."""
        text = _ESCAPES.sub("", line.decode("utf-8", "replace")).rstrip()
        if self._event is not None and (not text or text[0].isspace()):
            self._continue(self._event, text)
            return None
        begun = self._begin(text) if text else None
        if begun is None:
            if not text:
                return None
            if self._event is not None and self._event.is_traceback:
                self._continue(self._event, text)
                return None
            begun = ForeignEvent("warning", "stderr", [text])
        if begun.is_traceback and self._event is not None and _is_unfinished(self._event):
            self._continue(self._event, text)
            return None
        complete, self._event = self._event, begun
        return complete

    def end(self) -> ForeignEvent | None:
        """Nothing more comes, for now: the last event."""
        complete, self._event = self._event, None
        return complete

    def _continue(self, event: ForeignEvent, text: str) -> None:
        if len(event.lines) < LINES_MAX:
            event.lines.append(text)
        else:
            event.left_out_count += 1

    def _begin(self, text: str) -> ForeignEvent | None:
        for pattern, logger in (
            (_ONNXRUNTIME, "onnxruntime"),
            (_ABSEIL, self._abseil_is),
            (_ENVOY, "envoy"),
            (_PYTHON_WARNING, "python"),
        ):
            match = pattern.fullmatch(text)
            if match is not None:
                found = match.groupdict()
                level = _LEVELS.get(found.get("level", "W"), "warning")
                return ForeignEvent(level, logger, [found["text"]], found["source"] or "")
        if _TRACEBACK.match(text):
            return ForeignEvent("error", "python", [text], is_traceback=True)
        if _DEATH.match(text):
            return ForeignEvent("error", "stderr", [text])
        return None
