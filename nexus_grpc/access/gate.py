"""Where callers are recognised: each call, hot or cold, gRPC or REST, passes Gate.admit before it has any effect.

What a caller may do is in rules.py; what came of a credential is remembered by authenticator.py.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nexus_grpc.access.authenticator import Authenticator, Credential
from nexus_grpc.access.call import API_KEY, AUTHORIZATION, Connection, Metadata, caller_address
from nexus_grpc.access.certificates import Certificates, from_auth_context
from nexus_grpc.access.forwarded import ForwardedCertificates
from nexus_grpc.access.identity import ANONYMOUS, Identity, Scope
from nexus_grpc.access.issuers import parse_trust
from nexus_grpc.access.jwt_tokens import JwtVerifier, UnknownKey
from nexus_grpc.access.keys import ApiKey
from nexus_grpc.access.rules import check_scope
from nexus_grpc.ipc.errors import Unauthenticated

ADDRESSES_MAX = 10_000
# Files were read by the supervisor: no path in a document is opened here.
_NOWHERE = Path()


class Gate:
    """One per process. Any thread may call admit.

    Args:
        optional: whether callers without a credential may predict and read.
        anonymous_per_minute: requests of each such address; 0 = any number.
        certificates: whether connections may have client certificates.
        envoy_secret: by which requests of our Envoy are known, which verifies certificates; empty if it asks for none.
    """

    def __init__(
        self, *, optional: bool, anonymous_per_minute: float, certificates: bool, envoy_secret: str = ""
    ) -> None:
        anonymous = Identity(ANONYMOUS, Scope.PREDICT | Scope.READ, rate_per_minute=anonymous_per_minute, priority=9)
        self._anonymous = anonymous if optional else None
        self._addresses: dict[str, Identity] = {}
        self._authenticator = Authenticator({}, JwtVerifier((), {}), self._anonymous)
        self._certificates = Certificates() if certificates else None
        self._forwarded = ForwardedCertificates(envoy_secret) if envoy_secret else None
        self._unknown: set[str] = set()

    def replace(self, message: Mapping[str, Any]) -> None:
        """Go by other keys, issuers and certificates from now on.

        Args:
            message: "keys", "trust" and "jwks", as supervisor/access.py makes it.
        """
        trust = parse_trust(message["trust"], _NOWHERE)
        keys = {key.id: key for key in map(ApiKey.from_json, message["keys"])}
        self._authenticator.replace(keys, JwtVerifier(trust.issuers, message["jwks"]))
        if self._certificates is not None:
            self._certificates = Certificates(trust.certificates)

    def admit(self, scope: Scope, metadata: Metadata, connection: Connection) -> Identity:
        """Who calls, who may do what needs this scope. Raises Unauthenticated or PermissionDenied."""
        authorization: Credential | None = None
        api_key: Credential | None = None
        for key, value in metadata:
            if key == AUTHORIZATION:
                if authorization is not None:
                    raise Unauthenticated(f"the header {key} comes twice; send it once")
                authorization = value
            elif key == API_KEY:
                if api_key is not None:
                    raise Unauthenticated(f"the header {key} comes twice; send it once")
                api_key = value
        if authorization is None and api_key is None:
            identity = self._without_header(metadata, connection)
        else:
            try:
                identity = self._authenticator.identify(authorization, api_key)
            except UnknownKey as error:
                self._unknown.add(error.issuer)
                raise
        check_scope(identity, scope)
        return identity

    def take_news(self) -> tuple[dict[str, float], list[str]]:
        """For the supervisor: when API keys were used last, by id; issuers that seem to have other keys by now."""
        unknown, self._unknown = self._unknown, set()
        return self._authenticator.take_used(), sorted(unknown)

    def _without_header(self, metadata: Metadata, connection: Connection) -> Identity:
        if self._certificates is not None:
            names = from_auth_context(connection.auth_context())
            if names is None and self._forwarded is not None:
                names = self._forwarded.names(metadata)
            if names is not None:
                return self._certificates.identity(names)
        identity = self._authenticator.identify(None)
        if identity is not self._anonymous:
            return identity
        address = caller_address(connection.peer(), metadata, port=False)
        known = self._addresses.get(address)
        if known is None:
            if len(self._addresses) >= ADDRESSES_MAX:
                self._addresses.clear()
            known = self._addresses[address] = dataclasses.replace(identity, name=f"{ANONYMOUS}:{address}")
        return known
