"""Which releases of grpcio the fast transport was tried with."""

import grpc

GRPCIO_RANGE = ((1, 85, 1), (1, 86))


def version_mismatch() -> str:
    """Why the installed release was not tried; empty when it was."""
    try:
        version = tuple(int(part) for part in grpc.__version__.split(".")[:3])
    except ValueError:
        return f"grpcio {grpc.__version__} is no release"
    low, high = GRPCIO_RANGE
    return "" if low <= version < high else f"grpcio {grpc.__version__} is outside the tried range {low} to {high}"
