"""Who calls, and what they may do."""

import dataclasses
import enum
import fnmatch
import math


class Scope(enum.Flag):
    """What a credential allows. None includes another: an admin that predicts has both."""

    NONE = 0
    PREDICT = enum.auto()
    READ = enum.auto()
    ADMIN = enum.auto()


SCOPE_NAMES = {"predict": Scope.PREDICT, "read": Scope.READ, "admin": Scope.ADMIN}
ALL_MODELS = ("*",)
# What the names of callers without a credential begin with.
ANONYMOUS = "anonymous"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Identity:
    """A caller that was recognised. The front keeps one object per credential.

    Attributes:
        name: for logs, metrics and the audit log: "key:ID", "jwt:ISSUER/SUBJECT", "cert:SUBJECT" or "anonymous".
        scopes: what it may do.
        models: shell patterns of the models it may do it with (fnmatch.fnmatchcase).
        rate_per_minute: requests it may make in a minute; 0 = as many as it likes.
        burst: requests it may make at once.
        priority: 0 is shed last, 9 first.
        expires_s: wall-clock time (seconds since 1970) from which on it counts no more.
    """

    name: str
    scopes: Scope
    models: tuple[str, ...] = ALL_MODELS
    rate_per_minute: float = 0.0
    burst: int = 0
    priority: int = 5
    expires_s: float = math.inf

    def may_use(self, model: str) -> bool:
        """Whether one of its patterns covers the model."""
        return self.models == ALL_MODELS or any(fnmatch.fnmatchcase(model, pattern) for pattern in self.models)
