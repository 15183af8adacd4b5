"""From the first bytes of a message to the workers that can answer it.

The table is replaced whole when the supervisor sends a new one (an attribute store, so readers never see half of it).
A lookup costs one slice and two dictionary reads.
"""

import dataclasses
from typing import Any

from nexus_grpc.front.link import WorkerLink
from nexus_grpc.ipc.errors import InvalidInput, ModelUnavailable, NexusError, UnknownModel
from nexus_grpc.ipc.wire import LENGTH_DELIMITED, WireError, fields

# Protobuf tags of field 1 and field 2 as strings: model_name/model_id and model_version in every hot request.
NAME_TAG, VERSION_TAG = 0x0A, 0x12
ONE_BYTE_LENGTH_MAX = 0x7F


@dataclasses.dataclass(slots=True, eq=False)
class Route:
    """One model version that is ready. `links` are the live workers that hold it."""

    slot: int
    name: str
    version: str
    workers: frozenset[int]
    links: tuple[WorkerLink, ...] = ()
    turn: int = 0

    def pick(self) -> WorkerLink | None:
        """The less busy of two workers, taken in turn ("power of two choices"); None while there is none."""
        links = self.links
        count = len(links)
        if count == 1:
            return links[0]
        if count == 0:
            return None
        self.turn = turn = (self.turn + 1) % count
        one, other = links[turn], links[turn - 1]
        return one if len(one.flights) <= len(other.flights) else other


@dataclasses.dataclass(slots=True)
class ModelRoutes:
    """A model's versions; "" is the newest ready one. `unready` gives the reason why a known version is not."""

    versions: dict[bytes, Route]
    unready: dict[bytes, str]


class RouteTable:
    """Model name → versions → Route."""

    def __init__(self) -> None:
        self._models: dict[bytes, ModelRoutes] = {}
        self.routes: dict[int, Route] = {}

    def replace(self, catalogue: list[dict[str, Any]]) -> None:
        """Take over the supervisor's catalogue (see supervisor/catalogue.py)."""
        models: dict[bytes, ModelRoutes] = {}
        routes: dict[int, Route] = {}
        for entry in catalogue:
            name = entry["name"]
            model = models.setdefault(name.encode(), ModelRoutes({}, {}))
            version = entry["version"]
            if entry["state"] != "READY":
                model.unready[version.encode()] = entry["reason"] or entry["state"].lower()
                continue
            old = self.routes.get(entry["slot"])
            links = old.links if old else ()
            route = Route(entry["slot"], name, version, frozenset(entry["workers"]), links)
            routes[route.slot] = route
            model.versions[version.encode()] = route
            newest = model.versions.get(b"")
            if newest is None or int(version) > int(newest.version):
                model.versions[b""] = route
        self.routes = routes
        self._models = models

    def find(self, message: bytes) -> Route:
        """The route of a hot request. Raises UnknownModel, ModelUnavailable or InvalidInput."""
        length = len(message)
        if length > 2 and message[0] == NAME_TAG and message[1] <= ONE_BYTE_LENGTH_MAX:
            end = 2 + message[1]
            model = self._models.get(message[2:end])
            if model is not None:
                if end + 1 < length and message[end] == VERSION_TAG:
                    first = end + 2
                    route = model.versions.get(message[first : first + message[end + 1]])
                else:
                    route = model.versions.get(b"")
                if route is not None:
                    return route
        return self._find_slowly(message)

    def _find_slowly(self, message: bytes) -> Route:
        """The same for messages whose fields come in another order, and for everything that is wrong."""
        name, version = read_name_and_version(message)
        model = self._models.get(name)
        if model is not None and version in model.versions:
            return model.versions[version]
        raise self._refusal(name.decode("utf-8", "replace"), version.decode("utf-8", "replace"), model)

    def _refusal(self, name: str, version: str, model: ModelRoutes | None) -> NexusError:
        if not name:
            return InvalidInput("the request names no model: set model_name (model_id)", field="model_name")
        if model is None:
            return UnknownModel(f"Request for unknown model: '{name}' is not found")
        reason = model.unready.get(version.encode()) or next(iter(model.unready.values()), "")
        if version and version.encode() not in model.unready:
            known = ", ".join(sorted(v.decode() for v in (*model.versions, *model.unready) if v))
            return UnknownModel(
                f"Request for unknown model: '{name}' version {version} is not found; there is: {known or 'none'}"
            )
        return ModelUnavailable(f"model '{name}' is not ready: {reason}")


def read_name_and_version(message: bytes) -> tuple[bytes, bytes]:
    """Fields 1 and 2 of a message, wherever they stand; the last one wins, as in protobuf.

    Raises InvalidInput when the bytes are no protobuf message.
    """
    found = {1: b"", 2: b""}
    try:
        for number, wire_type, start, end in fields(message):
            if number in found and wire_type == LENGTH_DELIMITED:
                found[number] = message[start:end]
    except WireError:
        raise InvalidInput("the request is not a valid protobuf message") from None
    return found[1], found[2]
