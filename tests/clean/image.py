"""Carries out a Dockerfile without Docker: its steps, in a Debian made by debootstrap, where no daemon is to be had.

It knows what our Dockerfile uses: FROM (one base for all stages, and one root for all of them), WORKDIR, COPY, RUN,
ENV, USER and CMD. Anything else but what only concerns publishing is an error, so that no step is passed over.
"""

import dataclasses
import json
import pathlib
import shlex
import shutil

from tests.clean.rooms import PATH, ROOT_USER, Root

PUBLISHING = {"EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "VOLUME"}


@dataclasses.dataclass
class Image:
    """What a Dockerfile made: how its command is run."""

    user: int = ROOT_USER
    folder: str = "/"
    command: str = ""
    variables: dict[str, str] = dataclasses.field(default_factory=dict)


def instructions(dockerfile: pathlib.Path) -> list[tuple[str, str]]:
    """(instruction, rest), with continued lines joined and comments left out."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]  # type: ignore[misc]


def build(room: Root, context: pathlib.Path) -> Image:
    """Carry out `context`/Dockerfile in the room. Raises AssertionError when a step fails or is unknown."""
    image = Image()
    for instruction, rest in instructions(context / "Dockerfile"):
        if instruction == "FROM":
            image = Image()
        elif instruction == "WORKDIR":
            image.folder = rest
            (room.folder / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif instruction == "COPY":
            _copy(room, context, image.folder, rest)
        elif instruction == "RUN":
            room.user = image.user
            room.run(rest, room.folder / image.folder.lstrip("/"), **image.variables)
        elif instruction == "ENV":
            given = dict(word.split("=", 1) for word in shlex.split(rest))
            image.variables |= {name: value.replace("$PATH", PATH) for name, value in given.items()}
        elif instruction == "USER":
            image.user = int(rest)
        elif instruction == "CMD":
            image.command = shlex.join(json.loads(rest))
        else:
            assert instruction in PUBLISHING, f"{instruction} is not known here"
    room.user = image.user
    return image


def _copy(room: Root, context: pathlib.Path, folder: str, rest: str) -> None:
    *sources, target = rest.split()
    if sources[0].startswith("--from="):
        return  # all stages share a root
    into = room.folder / folder.lstrip("/") / target
    for source in sources:
        if (context / source).is_dir():
            shutil.copytree(context / source, into, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copy(context / source, into)
