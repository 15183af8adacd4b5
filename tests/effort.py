"""How hard tests that try at random try: `make test-long` has them try many times as often, and each time anew."""

import os

_FACTOR = int(os.environ.get("TEST_EFFORT") or 1)
IS_LONG = _FACTOR > 1


def examples(count: int) -> int:
    """How many examples a hypothesis test tries, of which `count` are for every day."""
    return count * _FACTOR
