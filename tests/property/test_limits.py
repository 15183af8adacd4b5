"""Buckets, circuits and admission against models of their own."""

import collections
import itertools
import random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from nexus_grpc.limits.admission import ADMITTED, PRIORITIES, SHED, TOO_LATE, Admission
from nexus_grpc.limits.backlog import Backlog
from nexus_grpc.limits.buckets import MINUTE_NS, SECOND_NS, Rate, TokenBucket, rate_of, remaining
from nexus_grpc.limits.circuit import STEPS, Circuit, CircuitPolicy, State
from tests.effort import examples

NOW = 1_000 * SECOND_NS
rates = st.builds(rate_of, st.floats(0.1, 1e6), st.integers(0, 50))
gaps = st.lists(st.integers(0, 3 * SECOND_NS) | st.integers(0, 1000), max_size=200)


@given(rates, gaps)
def test_no_two_moments_have_more_between_them(rate: Rate, waits: list[int]) -> None:
    bucket, passed, now_ns = TokenBucket(rate), [], NOW
    for wait_ns in waits:
        now_ns += wait_ns
        if bucket.take(now_ns) == 0:
            passed.append(now_ns)
    for first, last in itertools.combinations(range(len(passed)), 2):
        seconds_allow = rate.burst + (passed[last] - passed[first]) * rate.per_minute / MINUTE_NS
        assert last - first + 1 <= seconds_allow + 1e-6


@given(rates, gaps)
def test_who_waits_as_told_gets_in_and_not_before(rate: Rate, waits: list[int]) -> None:
    bucket, now_ns = TokenBucket(rate), NOW
    for wait_ns in waits:
        now_ns += wait_ns
        left = remaining(bucket, now_ns)
        told_ns = bucket.take(now_ns)
        assert (told_ns == 0) == (left > 0)
        if told_ns:
            assert bucket.take(now_ns + told_ns - 1) == 1
            now_ns += told_ns
            assert bucket.take(now_ns) == 0


@given(st.floats(1.0, 1e6), st.integers(1, 50), st.integers(0, 1000))
def test_a_greedy_caller_gets_all_there_is(per_minute: float, burst: int, steps: int) -> None:
    rate, taken, now_ns = rate_of(per_minute, burst), 0, NOW
    bucket = TokenBucket(rate)
    while now_ns <= NOW + steps * rate.interval_ns:
        wait_ns = bucket.take(now_ns)
        taken += not wait_ns
        now_ns += wait_ns
    assert taken == burst + steps


# --- circuits ---


class CircuitModel:
    """The rules of circuit.py in the plainest words, with every request that ended."""

    def __init__(self, policy: CircuitPolicy) -> None:
        self.policy = policy
        self.state = State.CLOSED
        self.ended: list[tuple[int, bool]] = []
        self.doubts: list[tuple[int, int]] = []
        self.unlucky: set[int] = set()
        self.opened_ns = self.probing_ns = 0
        self.passed = self.well = 0

    def allow(self, now_ns: int, caller: int) -> bool:
        since_ns = self.opened_ns if self.state is State.OPEN else self.probing_ns
        if self.state is State.CLOSED:
            return True
        if now_ns - since_ns >= self.policy.open_ns:
            self.state, self.probing_ns, self.passed, self.well = State.HALF_OPEN, now_ns, 0, 0
            self.unlucky = set()
        if self.state is State.OPEN or self.passed == self.policy.probes or caller in self.unlucky:
            return False
        self.passed += 1
        return True

    def end(self, failed: bool, now_ns: int, arrived_ns: int) -> None:
        if self.state is State.CLOSED:
            self.ended.append((self.step(now_ns), failed))
            if failed:
                self.judge(now_ns)
        elif self.state is State.HALF_OPEN and arrived_ns >= self.opened_ns:
            self.well += 1
            if failed:
                self.state, self.opened_ns = State.OPEN, now_ns
            elif self.well == self.policy.probes:
                self.state, self.ended, self.doubts = State.CLOSED, [], []

    def doubt(self, caller: int, now_ns: int, arrived_ns: int) -> None:
        if self.state is State.CLOSED:
            self.doubts.append((self.step(now_ns), caller))
            self.judge(now_ns)
        elif self.state is State.HALF_OPEN and arrived_ns >= self.opened_ns:
            self.unlucky.add(caller)
            if len(self.unlucky) == 2:
                self.state, self.opened_ns = State.OPEN, now_ns
            elif self.passed > self.well:
                self.passed -= 1

    def step(self, now_ns: int) -> int:
        return now_ns // (self.policy.window_ns // STEPS)

    def judge(self, now_ns: int) -> None:
        oldest = self.step(now_ns) - STEPS + 1
        counted = [each for step, each in self.ended if step >= oldest]
        callers = collections.Counter(caller for step, caller in self.doubts if step >= oldest)
        for caller, count in callers.items():
            counted += [True] * min(count, callers.total() - callers[caller])
        if len(counted) >= self.policy.requests and 0 < self.policy.failures <= sum(counted) / len(counted):
            self.state, self.opened_ns = State.OPEN, now_ns


policies = st.builds(
    CircuitPolicy,
    requests=st.integers(1, 6),
    failures=st.sampled_from([0.0, 0.25, 0.5, 0.6, 1.0]),
    open_ns=st.just(30 * SECOND_NS),
    probes=st.integers(1, 3),
)
# Of three callers.
happening = st.tuples(
    st.sampled_from(["arrive", "arrive", "well", "failed", "doubtful"]),
    st.integers(0, 12 * SECOND_NS),
    st.integers(1, 3),
)
events = st.lists(happening, max_size=150)


@given(policies, events)
def test_a_circuit_does_what_its_rules_say(policy: CircuitPolicy, happenings: list[tuple[str, int, int]]) -> None:
    changes: list[tuple[State, State]] = []
    circuit = Circuit(policy, lambda _, old, new: changes.append((old, new)))
    model, now_ns, flying = CircuitModel(policy), NOW, collections.deque[tuple[int, int]]()
    for what, wait_ns, caller in happenings:
        now_ns += wait_ns
        if what == "arrive":
            allowed = circuit.allow(now_ns, caller)
            assert allowed == model.allow(now_ns, caller)
            if allowed:
                flying.append((caller, now_ns))
        elif flying and what == "doubtful":
            caller, arrived_ns = flying.popleft()
            circuit.doubtful(caller, now_ns, arrived_ns)
            model.doubt(caller, now_ns, arrived_ns)
        elif flying:
            _, arrived_ns = flying.popleft()
            circuit.ended(what == "failed", now_ns, arrived_ns)
            model.end(what == "failed", now_ns, arrived_ns)
        assert circuit.state is model.state
        assert circuit.open is (model.state is not State.CLOSED)
    assert circuit.opened_count == sum(new is State.OPEN for _, new in changes)
    legal = {
        (State.CLOSED, State.OPEN),
        (State.OPEN, State.HALF_OPEN),
        (State.HALF_OPEN, State.OPEN),
        (State.HALF_OPEN, State.CLOSED),
    }
    assert set(changes) <= legal


@given(policies, st.lists(st.tuples(st.booleans(), st.integers(0, SECOND_NS)), max_size=200))
def test_no_single_caller_opens_a_circuit(policy: CircuitPolicy, others: list[tuple[bool, int]]) -> None:
    """Whatever one caller's requests do, beside those of others that go well."""
    circuit, now_ns = Circuit(policy), NOW
    for is_other, wait_ns in others:
        now_ns += wait_ns
        if is_other:
            circuit.ended(False, now_ns, now_ns)
        else:
            circuit.doubtful(1, now_ns, now_ns)
        assert not circuit.open


# --- admission ---

MS = 1_000_000
SLOT = 7


class Simulation:
    """One worker with a queue: it takes up to `batch` requests and answers them after service_ns each time, with an
    eighth of jitter. Clients send at random, each at its own rate and priority, whatever becomes of it (open loop)."""

    def __init__(self, seed: int, service_ns: int, batch: int, target_ns: int, deadline_ns: int) -> None:
        self.random = random.Random(seed)
        self.admission = Admission(target_ns)
        self.service_ns, self.batch, self.deadline_ns = service_ns, batch, deadline_ns
        self.capacity = batch * SECOND_NS / service_ns
        self.queue: collections.deque[tuple[int, int]] = collections.deque()
        self.running: list[tuple[int, int]] = []
        self.done_ns = 0
        self.verdicts: collections.Counter[tuple[int, int]] = collections.Counter()
        # (arrival, priority, time from arrival to answer) of what was answered.
        self.answered: list[tuple[int, int, int]] = []

    def _begin(self, now_ns: int) -> None:
        while self.queue and len(self.running) < self.batch:
            arrived_ns, priority = self.queue.popleft()
            if arrived_ns + self.deadline_ns > now_ns:  # the worker drops what has expired
                self.running.append((arrived_ns, priority))
            else:
                self.admission.backlog.gone(SLOT)
        self.done_ns = now_ns + int(self.service_ns * self.random.uniform(7 / 8, 9 / 8))

    def _finish(self) -> None:
        now_ns = self.done_ns
        self.answered += [(arrived_ns, priority, now_ns - arrived_ns) for arrived_ns, priority in self.running]
        quickest_ns = min(now_ns - arrived_ns for arrived_ns, _ in self.running)
        count, self.running = len(self.running), []
        for _ in range(count):
            self.admission.backlog.gone(SLOT)
        self.admission.answered(SLOT, quickest_ns, count, now_ns)
        self._begin(now_ns)

    def _arrive(self, now_ns: int, priority: int) -> None:
        admission = self.admission
        if admission.backlog.total_ns >= (admission.pass_ns if self.deadline_ns else admission.free_ns):
            oldest_ns = self.running[0][0] if self.running else self.queue[0][0] if self.queue else 0
            deadline_ns = now_ns + self.deadline_ns if self.deadline_ns else 0
            verdict = admission.verdict(priority, SLOT, oldest_ns, deadline_ns, now_ns)
            self.verdicts[priority, verdict] += 1
            if verdict != ADMITTED:
                return
        else:
            self.verdicts[priority, ADMITTED] += 1
        self.queue.append((now_ns, priority))
        admission.backlog.sent(SLOT, now_ns)
        if not self.running:
            self._begin(now_ns)

    def run(self, loads: dict[int, float], seconds: float) -> None:
        """`loads`: by priority, requests in a second as a part of the capacity."""
        rate = sum(loads.values()) * self.capacity
        now_ns = NOW
        priorities, weights = list(loads), list(loads.values())
        while now_ns < NOW + seconds * SECOND_NS:
            now_ns += int(self.random.expovariate(rate) * SECOND_NS)
            while self.running and self.done_ns <= now_ns:
                self._finish()
            self._arrive(now_ns, self.random.choices(priorities, weights)[0])

    def goodput(self, from_s: float, to_s: float) -> float:
        """Answers in time per second, as a part of the capacity."""
        begin_ns, end_ns = NOW + from_s * SECOND_NS, NOW + to_s * SECOND_NS
        good = [
            a for a, _, total_ns in self.answered if begin_ns <= a + total_ns < end_ns and total_ns <= self.deadline_ns
        ]
        return len(good) / (to_s - from_s) / self.capacity

    def p99_ns(self, from_s: float) -> int:
        times = sorted(total_ns for arrived_ns, _, total_ns in self.answered if arrived_ns >= NOW + from_s * SECOND_NS)
        return times[len(times) * 99 // 100]

    def admitted(self, priority: int) -> float:
        """The part of a priority's requests that was admitted."""
        counts = [self.verdicts[priority, verdict] for verdict in (ADMITTED, SHED, TOO_LATE)]
        return counts[ADMITTED] / sum(counts)


# A run takes half a second: what fails is not worth making smaller.
simulated = settings(max_examples=examples(12), deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
# What a batch takes, and its size.
QUICK = [(1 * MS, 1), (5 * MS, 1), (4 * MS, 8), (20 * MS, 16)]
quick_workers = st.sampled_from(QUICK)
# With 40 ms for each an interval sees eight answers: chance alone sheds a few.
workers = st.sampled_from([*QUICK, (40 * MS, 1)])


@simulated
@given(st.integers(0, 1000), workers, st.sampled_from([0, 5, 9]), st.sampled_from([2.0, 3.0, 6.0]))
def test_overload_costs_no_goodput(seed: int, worker: tuple[int, int], priority: int, load: float) -> None:
    simulation = Simulation(seed, *worker, target_ns=100 * MS, deadline_ns=500 * MS)
    simulation.run({priority: load}, seconds=6.0)
    assert simulation.goodput(0.5, 6.0) >= 0.85
    assert simulation.p99_ns(0.0) <= 500 * MS
    # Once the level stands, the queue is about the target's.
    assert simulation.p99_ns(1.5) <= 250 * MS + 2 * worker[0]


@simulated
@given(st.integers(0, 1000), quick_workers, st.sampled_from([(0, 9), (0, 5), (3, 4), (5, 9)]))
def test_the_lowest_priority_is_shed_first(seed: int, worker: tuple[int, int], priorities: tuple[int, int]) -> None:
    high, low = priorities
    simulation = Simulation(seed, *worker, target_ns=100 * MS, deadline_ns=2 * SECOND_NS)
    simulation.run({high: 0.6, low: 2.4}, seconds=8.0)
    assert simulation.admitted(high) >= 0.97
    assert simulation.admitted(low) <= 0.4
    assert simulation.goodput(0.5, 8.0) >= 0.85


@simulated
@given(st.integers(0, 1000), quick_workers)
def test_when_the_highest_alone_is_too_much_the_lower_get_little(seed: int, worker: tuple[int, int]) -> None:
    simulation = Simulation(seed, *worker, target_ns=100 * MS, deadline_ns=SECOND_NS)
    simulation.run({0: 2.0, 5: 1.0, 9: 1.0}, seconds=10.0)
    assert simulation.goodput(0.5, 10.0) >= 0.85
    assert simulation.admitted(0) >= 0.35
    assert simulation.admitted(5) <= 0.15
    assert simulation.admitted(9) <= 0.15


@simulated
@given(st.integers(0, 1000), quick_workers)
def test_nothing_is_shed_while_there_is_enough(seed: int, worker: tuple[int, int]) -> None:
    simulation = Simulation(seed, *worker, target_ns=200 * MS, deadline_ns=5 * SECOND_NS)
    simulation.run({9: 0.35, 0: 0.35}, seconds=10.0)
    assert simulation.admitted(9) >= 0.999
    assert simulation.admitted(0) == 1.0


def serve(admission: Admission, slot: int, each_ns: int, count: int, now_ns: int) -> int:
    """So many requests, one after the other. Returns when the last was answered."""
    for _ in range(count):
        admission.backlog.sent(slot, now_ns)
        now_ns += each_ns
        admission.backlog.gone(slot)
        admission.answered(slot, each_ns, 1, now_ns)
    return now_ns


def send(admission: Admission, slot: int, count: int, now_ns: int) -> None:
    for _ in range(count):
        admission.backlog.sent(slot, now_ns)


@pytest.mark.parametrize("priority", range(PRIORITIES))
def test_a_deadline_that_cannot_be_met_is_refused_at_once(priority: int) -> None:
    admission = Admission(100 * MS)
    now_ns = serve(admission, SLOT, 10 * MS, 50, NOW)
    send(admission, SLOT, 9, now_ns)
    # Nine requests of 10 ms each before it, an eighth of doubt, and its own 10 ms.
    assert admission.verdict(priority, SLOT, now_ns, now_ns + 115 * MS, now_ns) == ADMITTED
    assert admission.verdict(priority, SLOT, now_ns, now_ns + 95 * MS, now_ns) == TOO_LATE
    assert admission.verdict(priority, SLOT, now_ns, 0, now_ns) == ADMITTED
    # A worker that stopped answering is slower than it was.
    assert admission.verdict(priority, SLOT, now_ns, now_ns + 450 * MS, now_ns + 350 * MS) == TOO_LATE


def test_a_worker_that_became_slow_is_looked_at_again() -> None:
    """While all is well small queues are not even asked about; that must end when requests take longer."""
    admission = Admission(100 * MS)
    now_ns = serve(admission, SLOT, MS // 50, 100, NOW)
    send(admission, SLOT, 40, now_ns)
    assert admission.backlog.total_ns < admission.pass_ns < admission.free_ns
    for _ in range(3):
        now_ns += 50 * MS
        admission.backlog.gone(SLOT)
        admission.answered(SLOT, 50 * MS, 1, now_ns)
    assert admission.backlog.total_ns > admission.free_ns


def test_a_slow_model_says_nothing_of_a_fast_one() -> None:
    """Both in one worker: twenty requests that take a millisecond in all wait for the one that runs, no longer."""
    slow, fast = 1, 2
    admission = Admission(5 * SECOND_NS)
    now_ns = serve(admission, slow, SECOND_NS, 20, NOW)
    send(admission, slow, 1, now_ns)
    for _ in range(20):
        assert admission.verdict(5, fast, now_ns, now_ns + 2 * SECOND_NS, now_ns) == ADMITTED
        admission.backlog.sent(fast, now_ns)
    assert admission.verdict(5, slow, now_ns, now_ns + 2 * SECOND_NS, now_ns) == TOO_LATE


def test_what_was_long_ago_says_nothing_of_a_burst() -> None:
    """Requests of four seconds, a rest, thirty of half a second: 15 s in all, of the 30 that they have."""
    admission = Admission(5 * SECOND_NS)
    now_ns = serve(admission, SLOT, 4 * SECOND_NS, 5, NOW) + SECOND_NS
    for _ in range(30):
        assert admission.verdict(5, SLOT, now_ns, now_ns + 30 * SECOND_NS, now_ns) == ADMITTED
        admission.backlog.sent(SLOT, now_ns)
    # The first answer tells.
    now_ns += SECOND_NS // 2
    admission.backlog.gone(SLOT)
    admission.answered(SLOT, SECOND_NS // 2, 1, now_ns)
    assert admission.backlog.total_ns == pytest.approx(29 * SECOND_NS / 2)
    assert admission.verdict(5, SLOT, now_ns, now_ns + 15 * SECOND_NS, now_ns) == TOO_LATE


def test_what_waited_elsewhere_says_nothing_of_this_worker() -> None:
    admission = Admission(5 * SECOND_NS)
    admission.resumed(NOW)
    send(admission, SLOT, 9, NOW - 60 * SECOND_NS)
    admission.backlog.gone(SLOT)
    admission.answered(SLOT, 60 * SECOND_NS, 1, NOW + MS)
    assert admission.backlog.total_ns == pytest.approx(8 * MS)
    assert admission.level == 0


slots = st.integers(0, 3)
backlog_events = st.lists(
    st.tuples(st.sampled_from(["sent", "sent", "gone", "answered"]), slots, st.integers(1, SECOND_NS)), max_size=200
)


@given(backlog_events)
def test_a_backlog_is_what_is_there_times_what_each_takes(happenings: list[tuple[str, int, int]]) -> None:
    backlog, there, now_ns = Backlog(), collections.Counter[int](), NOW
    for what, slot, time_ns in happenings:
        now_ns += time_ns
        if what == "sent":
            backlog.sent(slot, now_ns)
            there[slot] += 1
        elif there[slot]:
            backlog.gone(slot)
            there[slot] -= 1
            if what == "answered":
                backlog.answered(slot, float(time_ns), 1, now_ns)
        expected = sum(count * backlog._shares[slot].each_ns for slot, count in there.items() if count)
        assert backlog.count == there.total()
        assert backlog.total_ns == pytest.approx(expected, abs=1.0)


def test_no_target_no_admission_control() -> None:
    admission = Admission(0)
    for step in range(1000):
        now_ns = NOW + step * SECOND_NS
        admission.backlog.sent(SLOT, now_ns)
        admission.answered(SLOT, 10 * SECOND_NS, 1, now_ns)
        assert admission.verdict(9, SLOT, NOW, now_ns + 1, now_ns) == ADMITTED
    assert min(admission.pass_ns, admission.free_ns) > admission.backlog.total_ns
