"""What a model may be called: the one definition, for the repository, uploads, the registry and access patterns.

The names of Triton's repositories, with two limits: no "..", so that a name never leads out of a folder, and no two
names that differ by case only, because some file systems and many people take them for one (`newcomers`).
"""

import re
from collections.abc import Collection, Iterable

from nexus_grpc.ipc.errors import InvalidInput

CHARACTERS_MAX = 128
# As in a regular expression's brackets.
CHARACTERS = "A-Za-z0-9._-"
# Routes of the REST interface that would shadow such a model.
RESERVED = frozenset({"info", "upload"})
EXPECTED = (
    f"1 to {CHARACTERS_MAX} letters (a-z, A-Z), digits, '.', '_' and '-', beginning with a letter or digit, without"
    f" '..', and neither `{'` nor `'.join(sorted(RESERVED))}`"
)

_NAME = re.compile(rf"[A-Za-z0-9][{CHARACTERS}]{{0,{CHARACTERS_MAX - 1}}}", re.ASCII)


def is_model_name(name: str) -> bool:
    """Whether a model may be called so: see EXPECTED."""
    return _NAME.fullmatch(name) is not None and ".." not in name and name not in RESERVED


def check_model_name(name: str) -> None:
    """Raises InvalidInput when no model may be called so."""
    if not is_model_name(name):
        raise InvalidInput(f"the id must be {EXPECTED}", field="id")


def newcomers(names: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """Which of `names` may not be: each differs by case only from another name, which came first.

    Args:
        known: the names of models there are; all others come now, in the order of their letters.

    Returns:
        For each of them the name that is there.
    """
    holders: dict[str, str] = {}
    refused = {}
    for name in sorted(known):
        holders.setdefault(name.lower(), name)
    for name in sorted(set(names) - set(known)):
        holder = holders.setdefault(name.lower(), name)
        if holder != name:
            refused[name] = holder
    return refused


def taken_text(name: str, holder: str) -> str:
    """What is said of a newcomer."""
    return f"'{name}' differs from the model '{holder}' by case only; give it another name, or delete '{holder}' first"
