"""The worker's loop: take what is in the rings, batch what fits, run, answer. One thread, no locks.

while running: intake → next batch → assemble → run → answer; sleep when there is nothing.
"""

import collections
import contextlib
import time
from collections.abc import Callable
from typing import Any

from nexus_grpc.ipc.errors import DeadlinePassed, InferenceFailed, ModelUnavailable, NexusError, Overloaded
from nexus_grpc.ipc.record import ISOLATED, OVERSIZE, Method
from nexus_grpc.ipc.ring import RingConsumer, Sleeper
from nexus_grpc.ipc.stats import WorkerStats, WorkerWord

from .assembly import as_result, assemble
from .batcher import Batcher, ModelQueue
from .http_decode import (
    decode_api_batch_predict,
    decode_api_predict,
    decode_http_predict,
    decode_v1_infer,
)
from .infer_decode import decode_infer
from .link import FrontLink, HandOverError
from .memory import MemoryKeeper, trim
from .model import Model, shape_text
from .predict_codec import decode_batch_predict, decode_predict
from .predictions import count_predictions
from .requests import Clock, Decoded, Request
from .results import BatchResult
from .shadow import Shadows
from .template import find_template, remember_template
from .v2_decode import decode_v2_infer
from .verdicts import Verdicts

# Records taken from one ring before the next batch starts: enough for any batch, little enough to stay responsive.
INTAKE_MAX = 1024
# Asleep at most this long: bounds a lost wake-up and keeps the heartbeat fresh.
SLEEP_MAX_MS = 100.0
# Batches that may wait to be written into the statistics while there is work.
SETTLE_EVERY = 32
# As many of experiments' arms, whose answers are held until then.
PREDICTED_MAX = 4
# How often the gauges are brought up to date.
OBSERVE_NS = 50_000_000
# While replies wait for room in a ring there is nobody to ring us.
REPLY_RETRY_MS = 1.0

DECODERS: dict[int, Callable[[Model, Any], Decoded]] = {
    Method.MODEL_INFER: decode_infer,
    Method.MODEL_STREAM_INFER: decode_infer,
    Method.PREDICT: decode_predict,
    Method.PREDICT_STREAM: decode_predict,
    Method.BATCH_PREDICT: decode_batch_predict,
    Method.HTTP_PREDICT: decode_http_predict,
    Method.HTTP_API_PREDICT: decode_api_predict,
    Method.HTTP_API_BATCH_PREDICT: decode_api_batch_predict,
    Method.HTTP_V1_INFER: decode_v1_infer,
    Method.HTTP_V2_INFER: decode_v2_infer,
}


class WorkerLoop:
    """Built once; run() serves until stop(). Other threads talk to it through `commands` and the doorbell only."""

    def __init__(
        self,
        sleeper: Sleeper,
        stats: WorkerStats,
        report: Callable[[str], None],
        report_batching: Callable[[Model, str], None],
    ) -> None:
        self._sleeper = sleeper
        self._stats = stats
        # Tells the supervisor, which logs, of a model whose batching ends.
        self._report_batching = report_batching
        self.batcher = Batcher()
        self._verdicts = Verdicts(self.batcher, stats, report)
        self._links: list[FrontLink] = []
        self._rings: list[RingConsumer] = []
        self._running = True
        self._hits = self._misses = 0
        self._next_observe_ns = 0
        self._memory = MemoryKeeper()
        # Batches that are answered and not yet in the statistics: slot, rows, arrivals, clock.
        self._ended: list[tuple[int, int, list[int], Clock]] = []
        # Those of experiments' arms among them, for what they answered.
        self._predicted: list[BatchResult] = []
        # Work for this thread from the control thread: attach, detach, add a model, stop.
        self.commands: collections.deque[Callable[[], None]] = collections.deque()
        self.shadows = Shadows(self.batcher.model_of, stats)

    # --- commands, called on the loop's thread ---

    def attach(self, link: FrontLink) -> None:
        self._set_links([*self._links, link])

    def detach(self, front: int) -> None:
        """Forget a front that is gone: its requests have nobody to answer to."""
        for link in self._links:
            if link.front == front:
                link.close()
        self._set_links([link for link in self._links if link.front != front])

    def _set_links(self, links: list[FrontLink]) -> None:
        self._links = links
        self._rings = [link.requests for link in links]

    def add_model(self, model: Model, incarnation: int = 0) -> None:
        """Take requests for a model. `incarnation`: see WorkerStats.own."""
        self._settle()
        self._stats.own(model.slot, incarnation)
        self.batcher.add_model(model)

    def remove_model(self, slot: int) -> None:
        """Answer what has come for a model, then forget it. The fronts send nothing more for it by now.

        Its counts stay until the slot has another owner.
        """
        for link in self._links:
            while fetched := link.requests.poll_nowait(INTAKE_MAX):
                for fields, content in fetched:
                    self._accept(link, fields, content)
        queue = self.batcher.remove_model(slot)
        while queue is not None and queue.requests:
            self._execute(queue, queue.take())
        self._publish()
        self._settle()
        self.shadows.forget(slot)

    def stop(self) -> None:
        self._running = False

    # --- the loop ---

    def run(self) -> None:
        next_batch, monotonic_ns = self.batcher.next_batch, time.monotonic_ns
        found: tuple[ModelQueue, list[Request]] | None = None
        while self._running:
            while self.commands:
                found = None  # it would keep the memory of a model that is to go
                self.commands.popleft()()
            self._intake()
            found = next_batch(monotonic_ns())
            if found is not None:
                self._execute(*found)
            self._publish()
            if found is None:
                self._settle()
                if not self.shadows.run_one():
                    self._sleep()
            elif len(self._ended) >= SETTLE_EVERY or len(self._predicted) >= PREDICTED_MAX:
                self._settle()

    def _sleep(self) -> None:
        now_ns = time.monotonic_ns()
        self._stats.idle(now_ns)
        if now_ns >= self._next_observe_ns:
            self._observe(now_ns)
        rings = self._rings
        if self._sleeper.park(rings):
            self._sleeper.sleep(self._sleep_ms(now_ns))
        self._sleeper.unpark(rings)

    def _sleep_ms(self, now_ns: int) -> float:
        due_ns = self.batcher.next_due_ns()
        timeout_ms = min(SLEEP_MAX_MS, max(0.0, (due_ns - now_ns) / 1e6)) if due_ns else SLEEP_MAX_MS
        for link in self._links:
            if link.has_waiting:
                return min(timeout_ms, REPLY_RETRY_MS)
        return timeout_ms

    def _observe(self, now_ns: int) -> None:
        """Bring the page's gauges and template counts up to date."""
        self._next_observe_ns = now_ns + OBSERVE_NS
        self._memory.look(now_ns)
        stats = self._stats
        waiting = [link.occupancy_bytes() for link in self._links]
        stats.gauge(WorkerWord.REQUEST_RING_BYTES, sum(request for request, _ in waiting))
        stats.gauge(WorkerWord.RESPONSE_RING_BYTES, sum(response for _, response in waiting))
        stats.count(WorkerWord.TEMPLATE_HITS, self._hits)
        stats.count(WorkerWord.TEMPLATE_MISSES, self._misses)
        self._hits = self._misses = 0

    def _intake(self) -> None:
        for link in self._links:
            for fields, content in link.requests.poll_nowait(INTAKE_MAX):
                self._accept(link, fields, content)

    def _accept(self, link: FrontLink, fields: tuple[int, ...], content: bytes) -> None:
        _, method, flags, id_length, sequence, deadline_ns, arrived_ns, slot, _ = fields
        request = Request(link, sequence, deadline_ns, arrived_ns, content[:id_length])
        try:
            queue = self.batcher.queue_of(slot)
            if queue is None:
                raise ModelUnavailable("the model is not loaded in this worker; try again")
            model = queue.model
            limit = model.queue.max_queue_size
            if limit and len(queue.requests) >= limit:
                raise Overloaded(f"model '{model.name}' has {limit} requests waiting, its max_queue_size")
            if flags:
                request.isolated = bool(flags & ISOLATED)
                request.oversize = bool(flags & OVERSIZE)
            if request.oversize:
                decoded = self._decode_oversize(link, model, method, request)
            else:
                decoded = self._decode(model, method, request, content[id_length:])
            request.signature, request.rows = decoded.signature, decoded.rows
            request.form, request.priority = decoded.form, decoded.priority
            if decoded.timeout_ns or model.queue.default_timeout_ns:
                _limit_wait(model, request, decoded.timeout_ns)
            self.batcher.enqueue(queue, request)
        except Exception as error:
            if flags & OVERSIZE and not request.oversize:
                with contextlib.suppress(HandOverError):
                    link.take_oversize(sequence).close()
            self._fail(slot, request, self._verdicts.of(error))

    def _decode(self, model: Model, method: int, request: Request, message: bytes) -> Decoded:
        template = find_template(model, method, message)
        if template is not None:
            self._hits += 1
            decoded = template.decoded
            request.pieces = decoded.form.pieces(template.tensors(message))
            return decoded
        self._misses += 1
        decoded = DECODERS[method](model, message)
        request.pieces = decoded.pieces
        remember_template(model, method, message, decoded)
        return decoded

    def _decode_oversize(self, link: FrontLink, model: Model, method: int, request: Request) -> Decoded:
        try:
            mapping = link.take_oversize(request.sequence)
        except HandOverError as error:
            raise InferenceFailed(str(error)) from None
        # A request too large for this machine dies here of the OOM killer: it must be known whose fault that was.
        link.mark_executing([request.sequence])
        try:
            decoded = DECODERS[method](model, mapping[:])
        finally:
            mapping.close()
            link.clear_executing()
        request.pieces = decoded.pieces
        return decoded

    # --- one batch ---

    def _execute(self, queue: ModelQueue, batch: list[Request]) -> None:
        model = queue.model
        started_ns = time.monotonic_ns()
        self._stats.busy(started_ns)
        if started_ns >= self._next_observe_ns:
            self._observe(started_ns)
        batch = self._still_wanted(model, batch, started_ns)
        if not batch:
            return
        links = self._mark(batch)
        try:
            self._run_batch(model, batch, started_ns)
        except Exception as error:
            self._run_apart(model, batch, error)
        finally:
            for link in links:
                link.clear_executing()
        if any(request.oversize for request in batch):
            batch.clear()
            trim()

    def _still_wanted(self, model: Model, batch: list[Request], now_ns: int) -> list[Request]:
        """Drop what has expired or was cancelled while it waited."""
        unwanted = [
            request
            for request in batch
            if 0 < request.deadline_ns <= now_ns or request.link.is_cancelled(request.sequence)
        ]
        if not unwanted:
            return batch
        for request in unwanted:
            if 0 < request.deadline_ns <= now_ns:
                self._stats.expired(model.slot)
                self._fail(model.slot, request, DeadlinePassed("the deadline passed while the request was queued"))
            else:
                self._stats.cancelled(model.slot)
        return [request for request in batch if request not in unwanted]

    def _mark(self, batch: list[Request]) -> dict[FrontLink, list[int]]:
        """Note the batch in the executing table of each front it came from."""
        if len(self._links) == 1:
            by_link = {self._links[0]: [request.sequence for request in batch]}
        else:
            by_link = {}
            for request in batch:
                by_link.setdefault(request.link, []).append(request.sequence)
        for link, sequences in by_link.items():
            link.mark_executing(sequences)
        return by_link

    def _run_apart(self, model: Model, batch: list[Request], error: Exception) -> None:
        """A run has failed. One request's values can do that: find out whose, by halves, and serve the others."""
        if len(batch) == 1:
            self._fail(model.slot, batch[0], self._verdicts.of_run(model, error))
            return
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            now_ns = time.monotonic_ns()
            self._stats.busy(now_ns)
            try:
                self._run_batch(model, half, now_ns)
            except Exception as again:
                self._run_apart(model, half, again)

    def _run_batch(self, model: Model, batch: list[Request], started_ns: int) -> None:
        """Assemble, run, answer. Raises before the first answer, or not at all."""
        rows = sum([request.rows for request in batch])
        feeds = assemble(model, batch, rows)
        assembled_ns = time.monotonic_ns()
        outputs = model.run(feeds, batch[0].oversize)
        inferred_ns = time.monotonic_ns()
        if inferred_ns - assembled_ns < model.witness.keep_below_ns:
            self._verdicts.keep(model, feeds, batch, inferred_ns - assembled_ns)
        result = as_result(model, outputs, rows)
        if result.as_given:
            self._rows_astray(result, len(batch))
        clock = Clock(started_ns, assembled_ns, inferred_ns)
        self._answer(batch, result, clock)
        clock.answered_ns = time.monotonic_ns()
        self._ended.append((model.slot, rows, [request.arrived_ns for request in batch], clock))
        if model.is_arm:
            self._predicted.append(result)
        if self.shadows.sources:
            self.shadows.copy(model.slot, feeds, result, inferred_ns - assembled_ns)

    def _rows_astray(self, result: BatchResult, count: int) -> None:
        """A batched model gave another number of rows than it got: where batching was derived, it ends. Alone, that is
        its answer. Raises InferenceFailed where it is not known which rows are whose: each runs again, alone."""
        model, shapes = result.model, ", ".join(shape_text(output.shape) for output in result.outputs)
        astray = f"for {result.rows} rows its outputs have the shapes {shapes}"
        if not model.batch_limit_is_strict and model.max_batch_size > 1:
            model.end_batching(f"requests are no longer batched: {astray}")
            self._report_batching(model, astray)
        if count > 1:
            raise InferenceFailed(f"model '{model.name}': {astray}")

    def _settle(self) -> None:
        """Write down the batches that have ended: not before their answers are out, and many at once (code that runs
        now and then runs cold, and costs several times as much)."""
        stats = self._stats
        for slot, rows, arrivals_ns, clock in self._ended:
            count = len(arrivals_ns)
            stats.queued(slot, [clock.started_ns - arrived_ns for arrived_ns in arrivals_ns])
            stats.batch(slot, rows, count, clock.assembly_ns, clock.inference_ns, clock.output_ns)
            stats.succeeded(slot, clock.inferred_ns * count - sum(arrivals_ns), count)
        self._ended.clear()
        for result in self._predicted:
            stats.predicted(result.model.slot, count_predictions(result))
        self._predicted.clear()

    def _answer(self, batch: list[Request], result: BatchResult, clock: Clock) -> None:
        form = batch[0].form
        link = batch[0].link
        if all([request.form is form and request.link is link for request in batch]):
            payloads = form.encode_all(result, len(batch))
            if payloads is not None:
                link.reply_all([request.sequence for request in batch], payloads)
                return
        first = 0
        for request in batch:
            last = first + request.rows
            timings = clock.timings(request.arrived_ns, result.rows)
            request.link.reply(request.sequence, request.form.encode(result, first, last, timings, request.request_id))
            first = last

    def _fail(self, slot: int, request: Request, error: NexusError) -> None:
        self._stats.failed(slot, time.monotonic_ns() - request.arrived_ns)
        request.link.reply_error(request.sequence, error)

    def _publish(self) -> None:
        for link in self._links:
            if link.unpublished or link.has_waiting:
                link.publish()


def _limit_wait(model: Model, request: Request, timeout_ns: int) -> None:
    """The queue policy's timeout, or the request's own where that may override it, becomes a deadline."""
    policy = model.queue
    limit_ns = timeout_ns if timeout_ns and policy.allow_timeout_override else policy.default_timeout_ns
    if limit_ns:
        latest_ns = request.arrived_ns + limit_ns
        request.deadline_ns = min(request.deadline_ns or latest_ns, latest_ns)
