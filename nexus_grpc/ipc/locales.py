"""The system's locales, which text models need: ONNX Runtime's StringNormalizer changes case by the rules of one, en_US
where the model names none, and does not load without it."""

import locale
import re

DEFAULT_LOCALE = "en_US.UTF-8"
# What ONNX Runtime says of one that is missing.
LOCALE_COMPLAINT = re.compile(r"Failed to construct locale with name:([\w.@-]+)")


def missing_locale(name: str) -> str:
    """What is wrong, and what helps."""
    return (
        f"it works on text by the rules of the locale {name}, which this machine does not have;"
        f" {how_to_add(name)}, then restart the server"
    )


def how_to_add(name: str) -> str:
    return f"on Debian: apt-get install locales && localedef -i {name.split('.')[0]} -f UTF-8 {name}"


def has_locale(name: str) -> bool:
    """Whether the C library finds it. Nothing is changed for this process."""
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, name)
    except locale.Error:
        return False
    locale.setlocale(locale.LC_CTYPE, before)
    return True
