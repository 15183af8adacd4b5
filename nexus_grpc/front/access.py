"""What a front checks of callers, as the settings want it: nothing, rates, or credentials as well.

What brings cryptography or Redis along is imported only where it is wanted: together they take 20 MiB.
"""

import os
import threading
import time
from typing import TYPE_CHECKING

import grpc

from nexus_grpc import logs
from nexus_grpc.access.call import Admit
from nexus_grpc.front.guard import Guard
from nexus_grpc.front.guarded import GateInterceptor
from nexus_grpc.front.request_ids import RequestIds
from nexus_grpc.ipc.control import ControlChannel, Message
from nexus_grpc.ipc.stats import REDIS_AWAY, REDIS_UP, FrontStats, FrontWord
from nexus_grpc.limits.limiter import Limiter
from nexus_grpc.limits.shared import BucketTable

if TYPE_CHECKING:
    from nexus_grpc.access.gate import Gate
    from nexus_grpc.limits.redis_share import RedisShare, ShareStatistics
    from nexus_grpc.settings import Settings

# How often the supervisor hears of credentials.
NEWS_SECONDS = 1.0


class FrontAccess:
    """Attributes:
    admit: recognises callers; None where nobody is asked for a credential.
    guard: what else requests have to pass; None where there is nothing.
    interceptors: of the cold methods.
    """

    def __init__(
        self,
        settings: "Settings",
        buckets_fd: int,
        ids: RequestIds,
        channel: ControlChannel,
        stats: FrontStats,
        envoy_secret: str = "",
    ) -> None:
        self._settings = settings
        self._channel = channel
        self._stats = stats
        # What of Redis is in the statistics: outages, local decisions.
        self._redis_counted = (0, 0)
        self._log = logs.logger()
        self._gate = self._build_gate(envoy_secret) if settings.auth != "off" else None
        self.admit: Admit | None = self._gate.admit if self._gate is not None else None
        self.guard: Guard | None = None
        self.interceptors: tuple[grpc.ServerInterceptor, ...] = ()
        if self.admit is not None or settings.model_per_minute:
            table = BucketTable(buckets_fd, alone=settings.fronts == 1)
            self.guard = Guard(Limiter(table, self._share()), settings.model_per_minute)
            if self.admit is not None:
                self.interceptors = (GateInterceptor(self.admit, self.guard.check_caller, ids),)
        os.close(buckets_fd)

    def replace(self, message: Message) -> None:
        """Go by the supervisor's `access` message from now on."""
        if self._gate is not None:
            self._gate.replace(message)

    def add_port(self, server: grpc.Server, address: str) -> None:
        """The gRPC port, with TLS where there is a certificate. Raises RuntimeError or ConfigurationError."""
        settings = self._settings
        if not settings.grpc_tls_certificate:
            server.add_insecure_port(address)
            return
        from nexus_grpc.front.tls import server_credentials

        authorities = settings.tls_client_ca
        credentials = server_credentials(
            settings.grpc_tls_certificate, settings.grpc_tls_key, authorities, require_client=bool(authorities)
        )
        server.add_secure_port(address, credentials)

    def _build_gate(self, envoy_secret: str) -> "Gate":
        from nexus_grpc.access.gate import Gate

        settings = self._settings
        gate = Gate(
            optional=settings.auth == "optional",
            anonymous_per_minute=settings.anonymous_per_minute,
            certificates=bool(settings.tls_client_ca),
            envoy_secret=envoy_secret,
        )
        threading.Thread(target=self._tell_news, args=(gate,), daemon=True, name="news").start()
        return gate

    def _tell_news(self, gate: "Gate") -> None:
        """For ever: what the supervisor should hear of credentials."""
        while True:
            time.sleep(NEWS_SECONDS)
            used, unknown = gate.take_news()
            if used or unknown:
                self._channel.send({"type": "credentials", "used": used, "unknown": unknown})

    def _share(self) -> "RedisShare | None":
        """The limits that other servers have a part in."""
        if not self._settings.redis_url:
            return None
        from nexus_grpc.limits.redis_share import RedisShare

        share = RedisShare(self._settings.redis_url, self._redis_changed, self._redis_seen)
        share.start()
        return share

    def _redis_seen(self, now: "ShareStatistics") -> None:
        """In the share's thread, which alone writes these words."""
        outages, decisions = self._redis_counted
        self._redis_counted = (now.outages, now.local_takes)
        self._stats.gauge(FrontWord.REDIS, REDIS_UP if now.up else REDIS_AWAY)
        self._stats.count(FrontWord.REDIS_OUTAGES, now.outages - outages)
        self._stats.count(FrontWord.LOCAL_DECISIONS, now.local_takes - decisions)

    def _redis_changed(self, up: bool, text: str) -> None:
        tell = self._log.info if up else self._log.warning
        tell("rate limits are shared by Redis" if up else "rate limits are this server's own: no Redis", reason=text)
