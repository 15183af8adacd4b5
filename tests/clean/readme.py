"""The README's commands as they are printed: every fenced block of shell and Python, one after the other, in one shell.

A block in another language (or marked `text`) is no command. What a block prints is checked by its exit status, and
`EXPECTED` says what else has to be there.
"""

import pathlib
import re

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = {"sh", "python"}
# Not run: pictures, settings files, a model's configuration.
SHOWN = {"text", "toml", "protobuf"}
SERVE, TEST = "make serve", "make test"
# What somebody who pastes everything must find in the output.
EXPECTED = (
    r'"predicted_?[cC]lass": ?"0"',  # curl and grpcurl
    r"NOT_FOUND UNKNOWN_MODEL \S+",  # an error's request id
)


def blocks(readme: pathlib.Path) -> list[tuple[str, str]]:
    """(language, text) of each fenced block. Raises AssertionError for one of which nothing says what it is."""
    found = FENCE.findall(readme.read_text())
    unknown = {language for language, _ in found} - RUN - SHOWN
    assert not unknown, f"README blocks need a language of {sorted(RUN | SHOWN)}, not {sorted(unknown)}"
    return found


def script(readme: pathlib.Path) -> str:
    """All commands but those that serve and test, as one bash script that ends at the first that fails."""
    lines = ["set -ex"]
    for language, text in blocks(readme):
        if language == "sh":
            lines += [line for line in text.splitlines() if not line.startswith((SERVE, TEST))]
        elif language == "python":
            lines += ["python - <<'END_OF_PYTHON'", *text.splitlines(), "END_OF_PYTHON"]
    return "\n".join(lines) + "\n"


def first_commands(readme: pathlib.Path) -> list[str]:
    """Those that `script` leaves out, without their comments."""
    lines = [line for language, text in blocks(readme) if language == "sh" for line in text.splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.startswith((SERVE, TEST))]


def missing(output: str) -> list[str]:
    """What of EXPECTED is not in the output."""
    return [pattern for pattern in EXPECTED if not re.search(pattern, output)]
