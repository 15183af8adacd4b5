"""The page, its scripts and the API's description: small enough to travel in Envoy's own configuration."""

import dataclasses
from pathlib import Path

FOLDER = Path(__file__).with_name("www")
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
# These have paths of their own; all others are /assets/<name>.
PATHS = {"index.html": "/", "docs.html": "/docs", "openapi.json": "/openapi.json"}


@dataclasses.dataclass(frozen=True)
class StaticFile:
    path: str
    content_type: str
    content: bytes


def static_files(folder: Path = FOLDER) -> list[StaticFile]:
    """All files of a folder that have a known content type, by path."""
    found = [file for file in folder.iterdir() if file.suffix in CONTENT_TYPES] if folder.is_dir() else []
    return [
        StaticFile(PATHS.get(file.name, f"/assets/{file.name}"), CONTENT_TYPES[file.suffix], file.read_bytes())
        for file in sorted(found)
    ]
