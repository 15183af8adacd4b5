"""The front as the supervisor sees it: builds the server, obeys control messages, drains."""

import functools
import json
import os
import threading
from concurrent import futures
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import grpc
import psutil

from nexus_grpc import logs, python_log
from nexus_grpc.configuration import ConfigurationError
from nexus_grpc.front.access import FrontAccess
from nexus_grpc.front.catalogue import Catalogue
from nexus_grpc.front.cold_methods import HOT, InferenceService, cold_handlers
from nexus_grpc.front.cold_rest import RestService, cold_rest_handlers
from nexus_grpc.front.completion_queue import CompletionQueueServer
from nexus_grpc.front.dispatcher import Dispatcher
from nexus_grpc.front.endings import Endings
from nexus_grpc.front.flight import Flight
from nexus_grpc.front.grpcio_contract import contract_mismatches
from nexus_grpc.front.hot_methods import METADATA_MAX_BYTES
from nexus_grpc.front.http_counts import HttpCounts
from nexus_grpc.front.keys_service import KeysService
from nexus_grpc.front.link import WorkerLink
from nexus_grpc.front.model_services import ModelsService, SystemService
from nexus_grpc.front.patient_pool import COLD_THREADS, PatientPool
from nexus_grpc.front.protection import ProtectionPolicy
from nexus_grpc.front.public_api import THREADS, public_server
from nexus_grpc.front.reflection import Health, Services, add_reflection
from nexus_grpc.front.request_ids import RequestIds
from nexus_grpc.front.routes import Route, RouteTable
from nexus_grpc.front.supervised import SupervisedCalls
from nexus_grpc.front.traffic_service import TrafficService
from nexus_grpc.front.upload import upload_handlers
from nexus_grpc.front.v2_rest import V2Service
from nexus_grpc.front.waiting import WaitingRoom
from nexus_grpc.ipc.control import ControlChannel, Message
from nexus_grpc.ipc.http_stats import count_http
from nexus_grpc.ipc.record import Method
from nexus_grpc.ipc.stats import FrontStats, FrontWord, open_page
from nexus_grpc.limits.circuit import CircuitPolicy, State
from nexus_grpc.pb.inference import grpc_service_pb2
from nexus_grpc.pb.nexus.v1 import keys_pb2, models_pb2, system_pb2, traffic_pb2

if TYPE_CHECKING:
    from nexus_grpc.settings import Settings

# Received by upload.py.
STREAMED = frozenset({"Upload"})
KEEPALIVE_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000
STREAMS_PER_CONNECTION = 1024
# As Envoy's (global_downstream_max_connections).
CONNECTIONS_MAX = 10_000
# By then a client must have acknowledged our settings, which limits hold from: 60 s by default. Envoy's
# request_headers_timeout is as long.
SETTINGS_TIMEOUT_MS = 10_000
LOOKAHEAD_BYTES = 4 << 20
_CIRCUIT_EVENTS = {
    State.OPEN: "circuit open: the version keeps failing and is left alone for now",
    State.HALF_OPEN: "circuit half-open: the version is tried with a few requests",
    State.CLOSED: "circuit closed: the version answers again",
}


class Front:
    """Control messages:

    access   keys, issuers and certificates to recognise callers by
    routes   the catalogue: what is ready, where, and what answers requests that name no version; answered by `routed`
    returned, raised   the end of a `call` (supervised.py)
    attach   a worker's segment, doorbell, side socket and statistics page
    detach   a worker died
    listen   bind the port (and Envoy's socket, if there is an Envoy) and serve; answered by `ready` or `failed`
    unready  say NOT_SERVING, and serve on
    drain    stop accepting, finish what is in flight, then exit
    """

    def __init__(self, channel: ControlChannel, hello: dict[str, Any], descriptors: list[int]) -> None:
        settings = _plain_settings(hello["settings"])
        logs.configure(settings.log_format, settings.log_level, "front", hello["index"])
        python_log.capture()
        self._log = logs.logger()
        self._request_log = logs.RequestLog(settings.log_sample)
        self._channel = channel
        self._core, self._crowded = hello["own_cpu"], hello["crowded_cpus"]
        self._envoy_socket = hello.get("envoy_socket", "")
        self._settings = settings
        page_fd, bell, buckets_fd = descriptors
        self._page = open_page(page_fd)
        stats = FrontStats(self._page)
        os.close(page_fd)
        stats.gauge(FrontWord.PID, os.getpid())
        self._catalogue = Catalogue()
        # Workers that are there: index → generation.
        self._workers: dict[int, int] = {}
        self._ids = RequestIds(os.urandom(9))
        self._serving = False
        self._stats = stats
        self._protection = _protection_of(settings)
        routes = RouteTable(self._protection, self._circuit_changed)
        self._dispatcher = Dispatcher(
            bell,
            stats,
            Endings(stats, routes, self._request_log.sampled, self._finished),
            self._broken,
            settings.max_in_flight_bytes,
            WaitingRoom(settings.max_in_flight, int(settings.respawn_wait_seconds * 1e9)),
            routes,
        )
        # The server that handlers and ports are added to, and what is started and stopped.
        self._access = FrontAccess(settings, buckets_fd, self._ids, channel, stats, hello.get("envoy_secret", ""))
        self._dispatcher.guard = self._access.guard
        self._stock, self._server = self._build_server()
        services = Services(self._stock)
        self._health = Health(services, patient=self._server is not self._stock)
        self._supervised = SupervisedCalls(channel)
        self._add_cold_methods(services)
        add_reflection(services)

    def _add_cold_methods(self, services: Services) -> None:
        supervised, serving, ids = self._supervised, lambda: self._serving, self._ids
        models = ModelsService(self._catalogue, supervised, self._circuit_of)
        traffic, keys = TrafficService(supervised), KeysService(supervised)
        started_at_s = psutil.Process(os.getppid()).create_time()
        auth, workers = self._settings.auth, self._workers
        system = SystemService(self._catalogue, serving, lambda: len(workers), started_at_s, supervised, auth)
        inference = InferenceService(self._catalogue, system.is_ready, supervised)
        handlers = (
            cold_handlers(inference, grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"], ids, HOT),
            cold_handlers(models, models_pb2.DESCRIPTOR.services_by_name["Models"], ids, STREAMED),
            cold_handlers(traffic, traffic_pb2.DESCRIPTOR.services_by_name["Traffic"], ids),
            cold_handlers(keys, keys_pb2.DESCRIPTOR.services_by_name["Keys"], ids),
            cold_handlers(system, system_pb2.DESCRIPTOR.services_by_name["System"], ids),
            cold_rest_handlers(RestService(V2Service(inference, system), models, system, traffic, keys), ids),
            *upload_handlers(self._settings, supervised, ids),
        )
        services.add_generic_rpc_handlers(handlers)

    def run(self) -> None:
        """The egress thread; returns when drained."""
        self._dispatcher.run()

    def _build_server(self) -> tuple[grpc.Server, grpc.Server | CompletionQueueServer]:
        ids, access = self._ids, self._access
        interceptors = (HttpCounts(self._http_ended), *access.interceptors)
        mismatches = contract_mismatches()
        if mismatches:
            self._log.warning("grpcio's internals do not match: serving through its public API", mismatches=mismatches)
        if mismatches or self._settings.front_api == "public":
            pool = futures.ThreadPoolExecutor(THREADS + COLD_THREADS, thread_name_prefix="call")
            server = public_server(self._dispatcher, ids, pool, self._options(), access.admit, interceptors)
            return server, server
        fast = CompletionQueueServer(
            self._dispatcher,
            ids,
            PatientPool(self._settings.uploads_max),
            self._options(),
            self._settings.stream_window,
            self._core,
            self._crowded,
            access.admit,
            interceptors,
        )
        return fast.stock, fast

    def _options(self) -> list[tuple[str, Any]]:
        return [
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", self._settings.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            # From the one to the other the core would refuse some, at random.
            ("grpc.max_metadata_size", METADATA_MAX_BYTES),
            ("grpc.absolute_max_metadata_size", METADATA_MAX_BYTES),
            ("grpc.http2.settings_timeout", SETTINGS_TIMEOUT_MS),
            ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
            ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
            # Windows as large as a client may ever need, instead of probing for the right size: each probe is a ping
            # and its answer beside the calls (docs/decisions/0005).
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", LOOKAHEAD_BYTES),
            ("grpc.enable_channelz", 0),
            # Notice clients that vanished without a word, and let clients ping as they like.
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_ping_strikes", 0),
        ]

    def control(self) -> None:
        """Obey the supervisor until `drain`. Raises ChannelClosed when it is gone."""
        while True:
            message, descriptors = self._channel.receive()
            kind = message["type"]
            if kind == "routes":
                self._take_routes(message)
            elif kind == "access":
                self._access.replace(message)
            elif kind in ("returned", "raised"):
                self._supervised.answered(message)
            elif kind == "attach":
                self._attach(message, descriptors)
            elif kind == "detach":
                if self._workers.get(message["worker"]) == message["generation"]:
                    del self._workers[message["worker"]]
                down = functools.partial(self._dispatcher.worker_down, message["worker"], message["generation"])
                self._dispatcher.command(down)
            elif kind == "listen":
                self._listen()
            elif kind == "unready":
                self._unready()
            elif kind == "drain":
                threading.Thread(target=self._drain, args=(message["seconds"],), daemon=True, name="drain").start()

    def _take_routes(self, message: Message) -> None:
        self._catalogue.replace(message["catalogue"], message["traffic"], message.get("down"))

        def replace() -> None:
            self._dispatcher.replace_routes(message["catalogue"], message["traffic"])
            # From now on no request goes to a version that is not in the table: the supervisor may unload it.
            self._channel.send({"type": "routed", "epoch": message["epoch"]})

        self._dispatcher.command(replace)
        if self._serving:
            self._health.update(self._catalogue)

    def _attach(self, message: Message, descriptors: list[int]) -> None:
        segment_fd, bell, side_fd, page_fd = descriptors
        self._catalogue.add_page(message["worker"], open_page(page_fd))
        os.close(page_fd)
        link = WorkerLink(
            message["worker"],
            message["generation"],
            segment_fd,
            bell,
            side_fd,
            self._settings.max_in_flight,
            self._protection.admission(),
        )
        self._workers[link.worker] = link.generation
        self._dispatcher.command(lambda: self._dispatcher.attach(link))

    def _listen(self) -> None:
        host = self._settings.host
        address = f"[{host}]" if ":" in host else host
        try:
            self._access.add_port(self._stock, f"{address}:{self._settings.grpc_port}")
            if self._envoy_socket:
                self._stock.add_insecure_port(f"unix-abstract:{self._envoy_socket}")
            self._server.start()
        except (RuntimeError, ConfigurationError) as error:
            self._channel.send({"type": "failed", "reason": str(error)})
            return
        self._serving = True
        self._health.update(self._catalogue)
        self._channel.send({"type": "ready"})

    def _unready(self) -> None:
        self._serving = False
        self._health.drain()

    def _drain(self, seconds: float) -> None:
        """Readiness first, then no new calls, then what is in flight, then the end."""
        self._unready()
        stopped = self._server.stop(seconds)
        stopped.wait(seconds + 1)
        self._dispatcher.stop()

    def _circuit_of(self, slot: int) -> str:
        route = self._dispatcher.routes.routes.get(slot)
        return (State.CLOSED if route is None else route.circuit.state).name.lower()

    def _circuit_changed(self, slot: int, name: str, version: str, state: State) -> None:
        self._stats.circuit(slot, int(state), state is State.OPEN)
        tell = self._log.info if state is State.CLOSED else self._log.warning
        tell(_CIRCUIT_EVENTS[state], model=name, version=version)

    def _broken(self, worker: int, generation: int) -> None:
        self._channel.send({"type": "broken", "worker": worker, "generation": generation})

    def _http_ended(self, endpoint: int, status: int, total_ns: int) -> None:
        """By threads of cold methods; the page has one writer."""
        self._dispatcher.command(functools.partial(count_http, self._page, endpoint, status, total_ns))

    def _finished(self, flight: Flight, code: int, total_ns: int) -> None:
        route = flight.route
        self._request_log.line(
            method=Method(flight.method).name,
            code=code,
            latency_us=total_ns // 1000,
            request_id=flight.request_id.decode(),
            model=route.name if isinstance(route, Route) else "",
            version=route.version if isinstance(route, Route) else "",
        )


def _plain_settings(text: str) -> "Settings":
    """The supervisor has checked them: what pydantic would add is 13 MiB. Paths are strings here, and tuples lists."""
    return cast("Settings", SimpleNamespace(**json.loads(text)))


def _protection_of(settings: "Settings") -> ProtectionPolicy:
    circuit = CircuitPolicy(
        settings.circuit_requests,
        settings.circuit_failures,
        int(settings.circuit_open_seconds * 1e9),
        settings.circuit_probes,
    )
    target_ns = int(settings.queue_target_ms * 1e6)
    return ProtectionPolicy(circuit, settings.model_max_in_flight, target_ns, settings.fronts)
