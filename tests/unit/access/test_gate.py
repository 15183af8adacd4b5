"""Where callers are recognised: headers, certificates, addresses; what the supervisor hears."""

import dataclasses
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from nexus_grpc.access.call import caller_address
from nexus_grpc.access.gate import ADDRESSES_MAX, Gate
from nexus_grpc.access.identity import Scope
from nexus_grpc.access.jwks import fitting_keys
from nexus_grpc.access.keys import ApiKey, new_key
from nexus_grpc.ipc.errors import PermissionDenied, Unauthenticated
from tests.unit.access.support import ISSUER, jwk, key_set, rsa_key, token
from tests.unit.access.test_forwarded import header

ALL = Scope.PREDICT | Scope.READ | Scope.ADMIN
RULES = {"certificate": [{"subject": "reader", "scopes": ["read"]}]}


@dataclasses.dataclass
class Caller:
    """A connection."""

    address: str = "ipv4:192.0.2.1:5000"
    names: Mapping[str, Iterable[bytes]] = dataclasses.field(default_factory=dict)

    def peer(self) -> str:
        return self.address

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return self.names


def gate(
    *keys: ApiKey, optional: bool = False, certificates: bool = False, envoy_secret: str = "", **message: Any
) -> Gate:
    made = Gate(optional=optional, anonymous_per_minute=100.0, certificates=certificates, envoy_secret=envoy_secret)
    made.replace(access(*keys, **message))
    return made


def access(*keys: ApiKey, **message: Any) -> dict[str, Any]:
    return {"type": "access", "keys": [key.to_json() for key in keys], "trust": {}, "jwks": {}, **message}


def a_key(**attributes: Any) -> tuple[str, ApiKey]:
    return new_key("a key", time.time(), **{"scopes": ALL, **attributes})


def bearer(text: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {text}"),)


def test_a_key_in_either_header() -> None:
    text, key = a_key()
    made = gate(key)
    for metadata in (bearer(text), (("x-api-key", text),), (("user-agent", "x"), ("x-api-key", text))):
        assert made.admit(Scope.ADMIN, metadata, Caller()).name == f"key:{key.id}"


def test_a_scope_that_is_missing() -> None:
    text, key = a_key(scopes=Scope.PREDICT)
    made = gate(key)
    assert made.admit(Scope.PREDICT, bearer(text), Caller()) is made.admit(Scope.PREDICT, bearer(text), Caller())
    with pytest.raises(PermissionDenied, match="lacks the scope admin"):
        made.admit(Scope.ADMIN, bearer(text), Caller())


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
def test_a_header_that_comes_twice(name: str) -> None:
    """Which of them would count? A proxy may think otherwise."""
    text, key = a_key()
    value = text if name == "x-api-key" else f"Bearer {text}"
    with pytest.raises(Unauthenticated, match=f"the header {name} comes twice"):
        gate(key, optional=True).admit(Scope.READ, ((name, value), (name, value)), Caller())


def test_no_credential() -> None:
    with pytest.raises(Unauthenticated, match="needs a credential"):
        gate().admit(Scope.READ, (), Caller())


@pytest.mark.parametrize("metadata", [bearer("nxk_x"), bearer("a.b.c"), (("x-api-key", ""),), (("authorization", ""),)])
def test_a_wrong_credential_is_never_anonymous(metadata: Any) -> None:
    with pytest.raises(Unauthenticated):
        gate(optional=True).admit(Scope.READ, metadata, Caller())


def test_anonymous_callers_are_told_apart_by_address() -> None:
    made = gate(optional=True)
    first = made.admit(Scope.PREDICT, (), Caller())
    assert (first.name, first.rate_per_minute, first.priority) == ("anonymous:192.0.2.1", 100.0, 9)
    assert made.admit(Scope.READ, (), Caller("ipv4:192.0.2.1:6000")) is first
    assert made.admit(Scope.READ, (), Caller("ipv6:%5B2001:db8::1%5D:6000")).name == "anonymous:2001:db8::1"
    with pytest.raises(PermissionDenied):
        made.admit(Scope.ADMIN, (), Caller())


def test_addresses_that_are_remembered_are_bounded() -> None:
    made = gate(optional=True)
    for number in range(ADDRESSES_MAX + 2):
        made.admit(Scope.READ, (), Caller(f"ipv4:{number}:1"))
    assert len(made._addresses) == 2


def test_the_address_of_one_whom_envoy_forwards() -> None:
    forwarded = (("x-forwarded-for", "203.0.113.9"), ("x-forwarded-for", "198.51.100.1, 192.0.2.7"))
    assert caller_address("unix-abstract:nexus", forwarded) == "192.0.2.7"
    assert caller_address("unix-abstract:nexus", ()) == "unix"
    # Anybody can write the header; it counts on Envoy's socket only.
    assert caller_address("ipv4:192.0.2.1:5000", forwarded) == "192.0.2.1:5000"
    assert caller_address("ipv4:192.0.2.1:5000", forwarded, port=False) == "192.0.2.1"


def test_a_certificate() -> None:
    made = gate(certificates=True, trust=RULES)
    reader = Caller(names={"x509_common_name": [b"reader"]})
    assert made.admit(Scope.READ, (), reader).name == "cert:reader"
    with pytest.raises(PermissionDenied):
        made.admit(Scope.PREDICT, (), reader)
    with pytest.raises(Unauthenticated, match="no \\[\\[certificate\\]\\]"):
        made.admit(Scope.READ, (), Caller(names={"x509_common_name": [b"other"]}))
    # The header x-forwarded-client-cert is anybody's.
    with pytest.raises(Unauthenticated, match="needs a credential"):
        made.admit(Scope.READ, (("x-forwarded-client-cert", 'Subject="CN=reader"'),), Caller())


def test_a_certificate_that_our_envoy_was_shown() -> None:
    """Rules, scopes and precedence are those of a certificate on the gRPC port."""
    text, key = a_key()
    made = gate(key, certificates=True, envoy_secret="s3cret", trust=RULES)
    word, front = ("x-nexus-envoy", "s3cret"), Caller("unix-abstract:nexus")
    shown = [("x-forwarded-client-cert", header(name)) for name in ("reader", "other")]
    assert made.admit(Scope.READ, (word, shown[0]), front) is made.admit(Scope.READ, (shown[0], word), front)
    assert made.admit(Scope.READ, (word, shown[0]), front).name == "cert:reader"
    with pytest.raises(PermissionDenied):
        made.admit(Scope.PREDICT, (word, shown[0]), front)
    with pytest.raises(Unauthenticated, match="no \\[\\[certificate\\]\\]"):
        made.admit(Scope.READ, (word, shown[1]), front)
    assert made.admit(Scope.ADMIN, (word, shown[0], *bearer(text)), front).name == f"key:{key.id}"
    for forged in [(shown[0],), (("x-nexus-envoy", "guess"), shown[0]), (word,)]:
        with pytest.raises(Unauthenticated, match="needs a credential"):
            made.admit(Scope.READ, forged, front)
    for unaware in (gate(certificates=True, trust=RULES), gate(envoy_secret="s3cret", trust=RULES)):
        with pytest.raises(Unauthenticated, match="needs a credential"):
            unaware.admit(Scope.READ, (word, shown[0]), front)


def test_certificates_are_not_looked_at_without_the_setting() -> None:
    with pytest.raises(Unauthenticated):
        gate(trust=RULES).admit(Scope.READ, (), Caller(names={"x509_common_name": [b"reader"]}))


def test_a_credential_goes_before_the_certificate() -> None:
    text, key = a_key()
    made = gate(key, certificates=True, trust=RULES)
    reader = Caller(names={"x509_common_name": [b"reader"]})
    assert made.admit(Scope.ADMIN, bearer(text), reader).name == f"key:{key.id}"
    with pytest.raises(Unauthenticated):
        made.admit(Scope.READ, bearer("nxk_wrong"), reader)


def test_other_keys_count_at_once() -> None:
    text, key = a_key()
    made = gate(key)
    made.admit(Scope.READ, bearer(text), Caller())
    made.replace(access(dataclasses.replace(key, revoked_at=time.time())))
    with pytest.raises(Unauthenticated):
        made.admit(Scope.READ, bearer(text), Caller())
    made.replace(access())
    with pytest.raises(Unauthenticated):
        made.admit(Scope.READ, bearer(text), Caller())
    made.replace(access(key))
    assert made.admit(Scope.READ, bearer(text), Caller()).name == f"key:{key.id}"


def test_what_the_supervisor_hears() -> None:
    text, key = a_key()
    table = {"issuer": ISSUER, "audience": "nexus", "algorithms": ["RS256"], "jwks_file": "none.json"}
    keys = fitting_keys(key_set(jwk(rsa_key(0), "one")), ("RS256",))
    made = gate(key, trust={"issuer": [table]}, jwks={ISSUER: keys})
    assert made.take_news() == ({}, [])
    made.admit(Scope.READ, bearer(text), Caller())
    later = int(time.time()) + 60
    known, unknown = (token(rsa_key(0), headers={"kid": kid}, exp=later, iat=later - 60) for kid in ("one", "two"))
    assert made.admit(Scope.PREDICT, bearer(known), Caller()).name == f"jwt:{ISSUER}/ada"
    with pytest.raises(Unauthenticated):
        made.admit(Scope.PREDICT, bearer(unknown), Caller())
    used, issuers = made.take_news()
    assert list(used) == [key.id]
    assert used[key.id] == pytest.approx(time.time(), abs=5)
    assert issuers == [ISSUER]
    assert made.take_news() == ({}, [])


def test_many_threads_while_keys_change() -> None:
    text, key = a_key()
    made = gate(key)
    names, done = set(), threading.Event()

    def call() -> None:
        while not done.is_set():
            names.add(made.admit(Scope.READ, bearer(text), Caller()).name)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        made.replace(access(key))
    done.set()
    for thread in threads:
        thread.join()
    assert names == {f"key:{key.id}"}
