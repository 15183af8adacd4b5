"""The error of a configuration that cannot be used.

By itself, as declaring settings (settings.py) takes pydantic: 13 MiB that fronts and workers do without.
"""


class ConfigurationError(Exception):
    """The server can't start as it is configured; the message has one line per problem, each with what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
