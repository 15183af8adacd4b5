"""From headers to identities: what is remembered, for how long, and what replacing the keys does."""

import dataclasses
import threading
from typing import Any

import pytest

from nexus_grpc.access import authenticator
from nexus_grpc.access.authenticator import KEPT_MAX, RECHECK_SECONDS, REFUSED_SECONDS, Authenticator, Remembered
from nexus_grpc.access.identity import Identity, Scope
from nexus_grpc.access.jwt_tokens import JwtVerifier, UnknownKey
from nexus_grpc.access.keys import new_key
from nexus_grpc.ipc.errors import Unauthenticated
from tests.unit.access.support import NOW, Clock, token, verifier

ANONYMOUS = Identity("anonymous", Scope.PREDICT | Scope.READ)
CERTIFICATE = Identity("cert:client", Scope.PREDICT)
TEXT, KEY = new_key("webshop", NOW, expires_at=NOW + 100)
OTHER_TEXT, OTHER = new_key("other", NOW)


def shown(value: Any) -> str:
    """A parameter's name: the same in every process, though the keys are not."""
    return str(value)[:200].replace(TEXT, "KEY").replace(OTHER_TEXT, "OTHER")


NO_TOKENS = JwtVerifier([], {})


class Counting(JwtVerifier):
    """Counts how often it is asked."""

    count = 0

    def verify(self, token: str, now: float) -> Identity:
        self.count += 1
        return super().verify(token, now)


def counting() -> Counting:
    made = verifier()
    found = Counting([], {})
    found.__dict__.update(made.__dict__)
    return found


@dataclasses.dataclass
class Made:
    authenticator: Authenticator
    clock: Clock
    monotonic: Clock
    verifier: Counting

    def pass_s(self, seconds: float) -> None:
        self.clock.now += seconds
        self.monotonic.now += seconds


@pytest.fixture
def made() -> Made:
    clock, monotonic, found = Clock(), Clock(5.0), counting()
    keys = {KEY.id: KEY, OTHER.id: OTHER}
    return Made(Authenticator(keys, found, None, clock=clock, monotonic=monotonic), clock, monotonic, found)


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [
        (f"Bearer {TEXT}", None),
        (f"bearer  {TEXT}", None),
        (f"BEARER {TEXT}".encode(), None),
        (None, TEXT),
        (None, TEXT.encode()),
        (f"Bearer {TEXT}", TEXT),
        (f"Bearer {TEXT}".encode(), TEXT),
    ],
    ids=shown,
)
def test_keys(made: Made, authorization: Any, api_key: Any) -> None:
    found = made.authenticator.identify(authorization, api_key, CERTIFICATE)
    assert found.name == f"key:{KEY.id}"
    # The same object, whose counts the front keeps.
    made.pass_s(RECHECK_SECONDS + 1)
    assert made.authenticator.identify(authorization, api_key) is found


def test_tokens_are_verified_once_in_a_while(made: Made) -> None:
    header = f"Bearer {token(exp=NOW + 1000)}"
    found = made.authenticator.identify(header)
    assert found.name.startswith("jwt:")
    for _ in range(10):
        made.pass_s(RECHECK_SECONDS / 10 - 0.01)
        assert made.authenticator.identify(header) is found
    assert made.verifier.count == 1
    made.pass_s(1)
    assert made.authenticator.identify(header) is found
    assert made.verifier.count == 2


@pytest.mark.parametrize("lifetime", [5, 40])
def test_what_is_remembered_expires_with_the_credential(made: Made, lifetime: int) -> None:
    header = f"Bearer {token(exp=NOW + lifetime - 30)}"
    made.authenticator.identify(header)
    made.pass_s(lifetime - 0.1)
    made.authenticator.identify(header)
    made.pass_s(0.2)
    with pytest.raises(Unauthenticated, match="expired"):
        made.authenticator.identify(header)


def test_a_clock_that_jumps_is_noticed(made: Made) -> None:
    made.authenticator.identify(None, TEXT)
    made.clock.now += 3600
    made.monotonic.now += RECHECK_SECONDS
    with pytest.raises(Unauthenticated, match="expired"):
        made.authenticator.identify(None, TEXT)


def test_a_wrong_credential_is_never_anonymous() -> None:
    found = Authenticator({}, NO_TOKENS, ANONYMOUS)
    assert found.identify(None) is ANONYMOUS
    assert found.identify(None, None, CERTIFICATE) is CERTIFICATE
    for authorization, api_key in (("", None), ("Bearer ", None), (f"Bearer {TEXT}", None), (None, ""), (None, TEXT)):
        for certificate in (None, CERTIFICATE):
            with pytest.raises(Unauthenticated):
                found.identify(authorization, api_key, certificate)


def test_without_anything() -> None:
    with pytest.raises(Unauthenticated, match="needs a credential; send"):
        Authenticator({}, NO_TOKENS, None).identify(None)


@pytest.mark.parametrize(
    ("authorization", "api_key", "message"),
    [
        (f"Bearer {TEXT}", OTHER_TEXT, "different credentials"),
        (f"Basic {TEXT}", None, "of the form `Bearer"),
        (f"Bearer{TEXT}", None, "of the form `Bearer"),
        (f"Bearer {TEXT} x", None, "of the form `Bearer"),
        (f"Bearer {TEXT},Bearer {TEXT}", None, "of the form `Bearer"),
        (f"Bearer {TEXT},{OTHER_TEXT}", None, "is not valid"),
        (TEXT, None, "of the form `Bearer"),
        (f"Bearer {'ä' * 30}", None, "not of the form header"),
        (f"Bearer {'ä' * 30}".encode(), None, "characters that no key"),
        (None, f"Bearer {TEXT}", "x-api-key has no API key"),
        (None, token(), "x-api-key has no API key"),
        (None, b"\xff" * 60, "characters that no key"),
        (f"Bearer {'x' * 100_000}", None, "longer than 16384"),
        (None, "nxk_" * 100_000, "longer than 16384"),
    ],
    ids=shown,
)
def test_what_is_refused(made: Made, authorization: Any, api_key: Any, message: str) -> None:
    for _ in range(3):
        with pytest.raises(Unauthenticated, match=message) as failure:
            made.authenticator.identify(authorization, api_key)
        assert TEXT[17:] not in failure.value.message
    if authorization != TEXT:
        # Nor does a header that was accepted elsewhere pass here.
        made.authenticator.identify(f"Bearer {TEXT}")
        with pytest.raises(Unauthenticated):
            made.authenticator.identify(authorization, api_key)


def test_a_flood_of_one_wrong_token_is_one_check(made: Made) -> None:
    wrong = f"Bearer {token()[:-8]}AAAAAAAA"
    for _ in range(100):
        with pytest.raises(Unauthenticated, match="signature is wrong") as failure:
            made.authenticator.identify(wrong)
    assert made.verifier.count == 1
    made.pass_s(REFUSED_SECONDS)
    with pytest.raises(Unauthenticated):
        made.authenticator.identify(wrong)
    assert made.verifier.count == 2
    depth, traceback = 0, failure.value.__traceback__
    while traceback is not None:
        depth, traceback = depth + 1, traceback.tb_next
    assert depth < 6


def test_an_unknown_key_stays_one_when_it_is_remembered(made: Made) -> None:
    unknown = f"Bearer {token(headers={'kid': 'two'})}"
    for _ in range(2):
        with pytest.raises(UnknownKey) as failure:
            made.authenticator.identify(unknown)
        assert (failure.value.reason, failure.value.issuer) == ("UNKNOWN_KEY", "https://login.example")
    assert made.verifier.count == 1


def test_replacing_forgets_what_was_accepted_and_what_was_refused(made: Made) -> None:
    found = made.authenticator
    late_text, late = new_key("late", NOW)
    for name, text in (("bearer", f"Bearer {TEXT}"), ("key", TEXT)):
        found.identify(text if name == "bearer" else None, None if name == "bearer" else text)
    with pytest.raises(Unauthenticated):
        found.identify(None, late_text)
    found.replace({KEY.id: dataclasses.replace(KEY, revoked_at=NOW), late.id: late}, NO_TOKENS)
    for authorization, api_key in ((f"Bearer {TEXT}", None), (None, TEXT)):
        with pytest.raises(Unauthenticated, match="is revoked"):
            found.identify(authorization, api_key)
    assert found.identify(None, late_text).name == f"key:{late.id}"
    with pytest.raises(Unauthenticated, match="accepts no tokens"):
        found.identify(f"Bearer {token()}")


def test_when_keys_were_used(made: Made) -> None:
    found = made.authenticator
    assert found.take_used() == {}
    found.identify(None, TEXT)
    made.pass_s(1)
    found.identify(f"Bearer {OTHER_TEXT}")
    found.identify(None, TEXT)
    with pytest.raises(Unauthenticated):
        found.identify(None, TEXT[:-4] + "0000")
    assert found.take_used() == {KEY.id: NOW, OTHER.id: NOW + 1}
    assert found.take_used() == {}
    made.pass_s(RECHECK_SECONDS)
    found.identify(None, TEXT)
    assert found.take_used() == {KEY.id: NOW + 1 + RECHECK_SECONDS}


def test_a_flood_of_wrong_tokens_is_bounded_and_costs_the_right_ones_nothing(made: Made) -> None:
    header = f"Bearer {token(exp=NOW + 1000)}"
    made.authenticator.identify(header)
    for number in range(3000):
        with pytest.raises(Unauthenticated):
            made.authenticator.identify(f"Bearer wrong{number}")
    snapshot = made.authenticator._snapshot
    assert len(snapshot.authorization.refused) <= authenticator.REFUSED_MAX
    assert len(snapshot.authorization.accepted) == 1
    count = made.verifier.count
    made.authenticator.identify(header)
    assert made.verifier.count == count


def test_what_is_remembered_is_bounded_by_number_and_by_size() -> None:
    found: Remembered[int] = Remembered(KEPT_MAX)
    for number in range(4 * KEPT_MAX):
        found.put(str(number), number)
        assert len(found) <= KEPT_MAX
    # The newest half is always there.
    assert all(found.get(str(number)) == number for number in range(4 * KEPT_MAX - KEPT_MAX // 2, 4 * KEPT_MAX))
    assert found.get("0") is None
    large: Remembered[int] = Remembered(100, 1000)
    for number in range(100):
        large.put(str(number) * 100, number)
        assert sum(len(key) for key in (*large.young, *large._old)) <= 1200
    for _ in range(100):
        large.put("again", 1)
    assert large.get("again") == 1


def test_threads_while_keys_are_replaced() -> None:
    """A revoked key is never accepted after replace() returned."""
    found = Authenticator({KEY.id: KEY}, NO_TOKENS, None, clock=Clock())
    revoked = {KEY.id: dataclasses.replace(KEY, revoked_at=NOW)}
    is_revoked, stop, wrong = threading.Event(), threading.Event(), []

    def call() -> None:
        while not stop.is_set():
            known = is_revoked.is_set()
            try:
                found.identify(None, TEXT)
            except Unauthenticated:
                continue
            if known and is_revoked.is_set():
                wrong.append("accepted")

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        found.replace(revoked, NO_TOKENS)
        is_revoked.set()
        stop.wait(0.001)
        is_revoked.clear()
        found.replace({KEY.id: KEY}, NO_TOKENS)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
