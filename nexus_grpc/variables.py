"""Variables that begin with NEXUS_: those of the commands that call a server, and those that nobody reads."""

import difflib
import re
from collections.abc import Iterable, Mapping

PREFIX = "NEXUS_"
CONFIG = "NEXUS_CONFIG"
ADDRESS, API_KEY, TOKEN = "NEXUS_ADDRESS", "NEXUS_API_KEY", "NEXUS_TOKEN"
TLS_CA, TLS_CERTIFICATE, TLS_KEY = "NEXUS_TLS_CA", "NEXUS_TLS_CERTIFICATE", "NEXUS_TLS_KEY"
OF_COMMANDS = (ADDRESS, API_KEY, TOKEN, TLS_CA, TLS_CERTIFICATE, TLS_KEY)
"""None of them is a setting of the server's."""
# Read where the hot path is compiled (setup.py).
_OTHERS = (CONFIG, "NEXUS_COMPILE")
# Kubernetes sets these for each Service, here for one whose name begins with nexus.
_SERVICE_LINK = re.compile(
    r"NEXUS(?:_[A-Z0-9_]+)?_(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_[A-Z]+)?)"
)
_SERVICE_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://")
_LIKE, _MUCH_LIKE = 0.6, 0.85
# NEXUS_GRPC_TLS_KEY is much like NEXUS_TLS_KEY, and no misspelt one.
_LETTERS_OFF_MAX = 2


def unknown(environment: Mapping[str, str], settings: Iterable[str]) -> dict[str, str]:
    """Variables that nobody reads, and what was probably meant by each ("" = nothing we know).

    Args:
        settings: the variables of the server's settings.
    """
    known = [*_OTHERS, *OF_COMMANDS, *settings]
    found = {}
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known and not _is_service_link(name, environment[name]):
            own = [each.removeprefix(PREFIX) for each in known]
            close = difflib.get_close_matches(name.removeprefix(PREFIX), own, n=1, cutoff=_LIKE)
            found[name] = PREFIX + close[0] if close else ""
    return found


def _is_service_link(name: str, value: str) -> bool:
    is_address = name.endswith("_PORT") and _SERVICE_ADDRESS.match(value) is not None
    return is_address or _SERVICE_LINK.fullmatch(name) is not None


def misspelt(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that look like a misspelt one of the commands', and which; for commands, which know no settings."""
    found = {}
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in OF_COMMANDS:
            close = difflib.get_close_matches(name, OF_COMMANDS, n=1, cutoff=_MUCH_LIKE)
            if close and abs(len(close[0]) - len(name)) <= _LETTERS_OFF_MAX:
                found[name] = close[0]
    return found


def warning(name: str, meant: str) -> str:
    """What is said of one."""
    return f"{name} is no setting and is ignored" + (f"; did you mean {meant}?" if meant else "")
