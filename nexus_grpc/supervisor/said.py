"""What was said already of things that are looked at again and again, so that the log has each complaint once."""

from collections.abc import Mapping


class Said:
    """Remembers the complaint about each thing, by its name."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}

    def news(self, complaints: Mapping[str, str]) -> dict[str, str]:
        """Of all complaints there are now, those that are new, or say something else than before. What has no complaint
        any more is forgotten: the next one about it is new."""
        found = {name: text for name, text in complaints.items() if self._said.get(name) != text}
        self._said = dict(complaints)
        return found

    def is_news(self, name: str, text: str) -> bool:
        """The same for one thing; an empty text forgets what was said of it."""
        is_new = bool(text) and self._said.get(name) != text
        if text:
            self._said[name] = text
        else:
            self._said.pop(name, None)
        return is_new
