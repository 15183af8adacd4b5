"""Which name was probably meant: one that differs by case, by punctuation or by one letter.

Found by looking up the name with each letter left out, so that a wrong name costs a few dictionary reads however many
models there are: whoever may ask may ask for wrong ones, and often (the idea of SymSpell).
"""

from collections.abc import Iterable, Iterator

from nexus_grpc.ipc.model_names import CHARACTERS_MAX

# Shorter names have too many neighbours, longer ones too many letters to leave out.
LETTERS_MIN, LETTERS_MAX = 3, 40
_NOTHING = dict.fromkeys(map(ord, "._- "))


class Similar:
    """Made of all names, once, when the first wrong one is asked for."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(names)
        self._by_key: dict[str, str] | None = None

    def to(self, name: str) -> str:
        """The name that was probably meant; empty if there is none."""
        if len(name) > CHARACTERS_MAX:
            return ""
        if self._by_key is None:
            self._by_key = self._index()
        for key in _keys(name):
            if key in self._by_key:
                return self._by_key[key]
        return ""

    def _index(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for name in self._names:
            for key in _keys(name):
                found.setdefault(key, name)
        # What a name is without punctuation counts more than what another one is with a letter left out.
        found.update({next(_keys(name)): name for name in reversed(self._names)})
        return found


def _keys(name: str) -> Iterator[str]:
    plain = name.lower().translate(_NOTHING)
    yield plain or name
    if LETTERS_MIN <= len(plain) <= LETTERS_MAX:
        for index in range(len(plain)):
            yield plain[:index] + plain[index + 1 :]
