"""From the first bytes of a message to the workers that can answer it.

The table is replaced whole when the supervisor sends a new one (an attribute store, so readers never see half of it).
A lookup costs one slice and two dictionary reads; one more, in a table of buckets, where an experiment splits a model's
traffic (split.py).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from nexus_grpc.front.callers import caller_of
from nexus_grpc.front.flight import Flight
from nexus_grpc.front.link import WorkerLink
from nexus_grpc.front.protection import FALLBACK_KEY, Ceiling, ProtectionPolicy, circuit_open, is_doubtful
from nexus_grpc.front.split import Split
from nexus_grpc.ipc.errors import InvalidInput, ModelUnavailable, NexusError, UnknownModel
from nexus_grpc.ipc.record import Blame
from nexus_grpc.ipc.similar import Similar
from nexus_grpc.ipc.wire import LENGTH_DELIMITED, WireError, fields
from nexus_grpc.limits.circuit import Circuit, State
from nexus_grpc.rest.twin import BODY_FIELD

# Protobuf tags of field 1 and field 2 as strings: model_name/model_id and model_version in every hot request.
NAME_TAG, VERSION_TAG = 0x0A, 0x12
ONE_BYTE_LENGTH_MAX = 0x7F
# How much a new latency counts in a link's average (TCP's smoothed round-trip time: RFC 6298, alpha = 1/8).
LATENCY_WEIGHT = 1 / 8
CircuitChanged = Callable[[int, str, str, State], None]


@dataclasses.dataclass(slots=True, eq=False)
class Route:
    """One model version that is ready. `links` are the live workers that hold it.

    `incarnation` tells it from what had its slot before. `split` is set on the route of requests that name no version,
    while an experiment runs. `circuit`, `ceiling` and `fallback`: see protection.py.
    """

    slot: int
    name: str
    version: str
    workers: frozenset[int]
    circuit: Circuit
    links: tuple[WorkerLink, ...] = ()
    turn: int = 0
    incarnation: int = 0
    split: Split | None = None
    ceiling: Ceiling | None = None
    fallback: "Route | None" = None

    # Whether observe() wants to be told.
    measures = False

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

    def observe(self, link: object, total_ns: int) -> None:
        """A request ended after so long."""

    def or_fallback(self, flight: Flight, now_ns: int) -> "Route":
        """Where a request goes: here, or, while the circuit is open, to the fallback version if it asked for no
        version of its own. Raises ModelUnavailable."""
        if self.circuit.allow(now_ns, caller_of(flight)):
            return self
        other = self.fallback
        if other is None or other.circuit.open or read_name_and_version(flight.message)[1]:
            raise circuit_open(self.name, self.version, self.circuit, now_ns)
        flight.headers = (*flight.headers, (FALLBACK_KEY, self.version))
        return other

    def answered(self, arrived_ns: int, total_ns: int) -> None:
        """A request that was let through here has ended well."""
        if self.ceiling is not None:
            self.ceiling.in_flight -= 1
        self.circuit.ended(False, arrived_ns + total_ns, arrived_ns)

    def failed(self, code: int, blame: Blame, caller: int, arrived_ns: int, total_ns: int) -> None:
        """It has not."""
        if self.ceiling is not None:
            self.ceiling.in_flight -= 1
        if blame is Blame.MODEL:
            self.circuit.ended(True, arrived_ns + total_ns, arrived_ns)
        elif is_doubtful(code, blame):
            self.circuit.doubtful(caller, arrived_ns + total_ns, arrived_ns)
        else:
            self.circuit.dropped(arrived_ns)


@dataclasses.dataclass(slots=True, eq=False)
class RoundRobinRoute(Route):
    """Takes the workers in turn."""

    def pick(self) -> WorkerLink | None:
        links = self.links
        if not links:
            return None
        self.turn = turn = (self.turn + 1) % len(links)
        return links[turn]


@dataclasses.dataclass(slots=True, eq=False)
class LeastLatencyRoute(Route):
    """Takes the worker that would answer first: its average latency times what it has in flight. Who has not been
    tried yet comes first."""

    latencies_ns: dict[int, float] = dataclasses.field(default_factory=dict)

    measures = True

    def pick(self) -> WorkerLink | None:
        known = self.latencies_ns.get
        return min(self.links, key=lambda link: known(link.worker, 0.0) * (len(link.flights) + 1), default=None)

    def observe(self, link: object, total_ns: int) -> None:
        if isinstance(link, WorkerLink):
            known = self.latencies_ns.get(link.worker, float(total_ns))
            self.latencies_ns[link.worker] = known + (total_ns - known) * LATENCY_WEIGHT


BALANCES: dict[str, type[Route]] = {
    "least_busy": Route,
    "round_robin": RoundRobinRoute,
    "least_latency": LeastLatencyRoute,
}


@dataclasses.dataclass(slots=True)
class ModelRoutes:
    """A model's versions; "" is what requests that name none get. `unready` gives the reason why a known version is
    not ready, `names` what else versions are called."""

    versions: dict[bytes, Route]
    unready: dict[bytes, str]
    names: dict[bytes, bytes] = dataclasses.field(default_factory=dict)


class RouteTable:
    """Model name → versions → Route.

    Args:
        policy: what protects the models.
        circuit_changed: called with (slot, name, version, state) when a circuit opens, is tried or closes.
    """

    def __init__(
        self,
        policy: ProtectionPolicy | None = None,
        circuit_changed: CircuitChanged | None = None,
    ) -> None:
        self._policy = policy or ProtectionPolicy()
        self._circuit_changed = circuit_changed
        self._models: dict[bytes, ModelRoutes] = {}
        self._similar = Similar(())
        self.routes: dict[int, Route] = {}
        self._ceilings: dict[str, Ceiling] = {}
        # Whether a route wants to be told how long requests took.
        self.measures = False

    def replace(self, catalogue: list[dict[str, Any]], traffic: dict[str, Any] | None = None) -> list[int]:
        """Take over the supervisor's catalogue and traffic (see supervisor/catalogue.py, supervisor/routing.py).

        Returns the slots that have another model version or variant than before: their statistics begin anew.
        """
        traffic = traffic or {}
        old = self.routes
        routes: dict[int, Route] = {}
        models: dict[bytes, ModelRoutes] = {}
        for entry in catalogue:
            policy = traffic.get(entry["name"], {})
            model = models.setdefault(entry["name"].encode(), ModelRoutes({}, {}))
            if entry["state"] == "READY":
                route = routes[entry["slot"]] = self._route(entry, policy, old.get(entry["slot"]))
                if not entry.get("variant"):
                    _add_version(model, route, entry.get("version_name", ""), policy)
            elif not entry.get("variant"):
                model.unready[entry["version"].encode()] = entry["reason"] or entry["state"].lower()
        for name, policy in traffic.items():
            if name.encode() in models:
                _add_default(models[name.encode()], policy, routes)
        for entry in catalogue:
            if entry["slot"] in routes and entry.get("fallback"):
                _add_fallback(models[entry["name"].encode()], routes[entry["slot"]], entry["fallback"])
        self.routes = routes
        self._models = models
        self._similar = Similar(name.decode() for name in models)
        self.measures = any(route.measures for route in routes.values())
        return [slot for slot, route in routes.items() if slot not in old or not _is_same(old[slot], route)]

    def _route(self, entry: dict[str, Any], policy: dict[str, Any], old: Route | None) -> Route:
        kind = BALANCES[policy.get("balance") or "least_busy"]
        incarnation = entry.get("incarnation", 0)
        known = old if old is not None and old.incarnation == incarnation else None
        route = kind(
            entry["slot"],
            entry["name"],
            entry["version"],
            frozenset(entry["workers"]),
            known.circuit if known is not None else self._circuit(entry["slot"], entry["name"], entry["version"]),
            incarnation=incarnation,
            ceiling=self._ceiling(entry["name"], entry.get("max_in_flight", 0)),
        )
        if known is not None:
            route.links = known.links
            if isinstance(route, LeastLatencyRoute) and isinstance(known, LeastLatencyRoute):
                route.latencies_ns = known.latencies_ns
        return route

    def _circuit(self, slot: int, name: str, version: str) -> Circuit:
        changed = self._circuit_changed
        if changed is None:
            return Circuit(self._policy.circuit)
        tell = changed
        return Circuit(self._policy.circuit, lambda circuit, before, after: tell(slot, name, version, after))

    def _ceiling(self, name: str, configured: int) -> Ceiling | None:
        """The same object for all versions, and for as long as the model is there: it counts."""
        limit = self._policy.ceiling_of(configured)
        if not limit:
            return None
        ceiling = self._ceilings.setdefault(name, Ceiling(limit))
        ceiling.limit = limit
        return ceiling

    def observe(self, flight: Flight, total_ns: int) -> None:
        """A request ended; its route may learn from how long it took."""
        if isinstance(flight.route, Route) and flight.route.measures:
            flight.route.observe(flight.link, total_ns)

    def route_of(self, flight: Flight) -> Route:
        """The route of a hot request. Raises UnknownModel, ModelUnavailable or InvalidInput."""
        route = self.find(flight.message)
        if route.split is not None:
            chosen: Route = route.split.choose(flight)
            return chosen
        return route

    def again(self, flight: Flight) -> Route:
        """A flight's route as it is now; another one when its version is gone meanwhile. Raises as `route_of`."""
        known, route = flight.route, self.routes.get(flight.slot)
        if route is None or not isinstance(known, Route) or route.incarnation != known.incarnation:
            route = flight.route = self.route_of(flight)
            flight.slot = route.slot
        return route

    def find(self, message: bytes) -> Route:
        """The route that a request names. Raises UnknownModel, ModelUnavailable or InvalidInput."""
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
        if not name and is_nameless_rest(message):
            name = self._only_model()
        model = self._models.get(name)
        if model is not None:
            version = model.names.get(version, version)
            if version in model.versions:
                return model.versions[version]
        raise self._refusal(name.decode("utf-8", "replace"), version.decode("utf-8", "replace"), model)

    def _only_model(self) -> bytes:
        """The one that is served, if there is one alone. Raises InvalidInput."""
        names = [name for name, model in self._models.items() if model.versions] or list(self._models)
        if len(names) != 1:
            raise InvalidInput(
                'field "model_id" is missing: it names the model; it may be left out only where one model is served',
                field="model_id",
            )
        return names[0]

    def _refusal(self, name: str, version: str, model: ModelRoutes | None) -> NexusError:
        if not name:
            return InvalidInput("the request names no model: set model_name (model_id)", field="model_name")
        if model is None:
            return UnknownModel(f"Request for unknown model: '{name}' is not found", meant=self._similar.to(name))
        reason = model.unready.get(version.encode()) or next(iter(model.unready.values()), "")
        reason = reason or "no version of it answers requests that name none"
        if version and version.encode() not in model.unready:
            known = ", ".join(sorted(v.decode() for v in (*model.versions, *model.unready) if v))
            return UnknownModel(
                f"Request for unknown model: '{name}' version {version} is not found; there is: {known or 'none'}"
            )
        return ModelUnavailable(f"model '{name}' is not ready: {reason}")


def _is_same(one: Route, other: Route) -> bool:
    return one.incarnation == other.incarnation


def _add_version(model: ModelRoutes, route: Route, version_name: str, policy: dict[str, Any]) -> None:
    model.versions[route.version.encode()] = route
    model.names[b"v" + route.version.encode()] = route.version.encode()
    if version_name:
        model.names[version_name.encode()] = route.version.encode()
    newest = model.versions.get(b"")
    if not policy and (newest is None or int(route.version) > int(newest.version)):
        model.versions[b""] = route


def _add_default(model: ModelRoutes, policy: dict[str, Any], routes: dict[int, Route]) -> None:
    """What requests that name no version get: an experiment's split, else the serving version, else nothing."""
    serving = routes.get(policy.get("serving", 0))
    arms = [routes.get(slot, serving) for slot in policy.get("arms", ())]
    if arms and all(arm is not None for arm in arms) and arms[0] is not None:
        for arm in arms[1:]:
            if arm is not None:  # a candidate that fails leaves its share to the first variant
                arm.fallback = arms[0]
        split = Split(arms, policy["assignment"], policy["salt"], policy.get("sticky"))
        model.versions[b""] = dataclasses.replace(arms[0], split=split)
    elif serving is not None:
        model.versions[b""] = serving


def _add_fallback(model: ModelRoutes, route: Route, number: int) -> None:
    """A version that is there and is another one."""
    fallback = model.versions.get(b"%d" % number)
    if fallback is not None and fallback.slot != route.slot and fallback.version != route.version:
        route.fallback = fallback


def is_nameless_rest(message: bytes) -> bool:
    """Whether it is a REST call whose JSON names no model (http_calls.py): what comes by gRPC has no such field."""
    try:
        return any(number == BODY_FIELD for number, _, _, _ in fields(message))
    except WireError:
        return False


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
