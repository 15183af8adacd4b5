"""Which requests run next, together. Pure bookkeeping: no rings, no clock of its own, no ONNX Runtime.

Each model has a queue, first in, first out, within each of its priorities where it has any; models with requests take
turns. A batch is what stands at the head of one queue and fits together: equal signatures, at most `max_batch_size`
rows. Nothing waits for company unless the model's config says so (max_queue_delay_microseconds).
"""

import collections

from nexus_grpc.ipc.segment import TABLE_ENTRIES

from .model import Model
from .requests import Request, Signature

# A batch's sequences must fit the segment's executing table.
BATCH_REQUESTS_MAX = TABLE_ENTRIES


class ModelQueue:
    """One model's waiting requests."""

    __slots__ = ("_shared", "model", "requests", "rows")

    def __init__(self, model: Model) -> None:
        self.model = model
        self.requests: collections.deque[Request] = collections.deque()
        self.rows = 0
        # The signature that was last found fit for company.
        self._shared: Signature | None = None

    def insert(self, request: Request) -> None:
        """Behind those of its priority, before those of a lower one (a higher number)."""
        requests = self.requests
        place = len(requests)
        while place and requests[place - 1].priority > request.priority:
            place -= 1
        requests.insert(place, request)

    def take(self) -> list[Request]:
        """Remove and return the next batch: at least one request."""
        requests = self.requests
        first = requests.popleft()
        batch = [first]
        rows = first.rows
        signature = first.signature
        if (
            requests
            and self.model.max_batch_size
            and not first.isolated
            and (signature is self._shared or self._may_share(signature))
        ):
            room = self.model.max_batch_size
            while requests and len(batch) < BATCH_REQUESTS_MAX:
                following = requests[0]
                if rows + following.rows > room or following.isolated:
                    break
                if following.signature is not signature and following.signature != signature:
                    break
                batch.append(requests.popleft())
                rows += following.rows
        self.rows -= rows
        return batch

    def _may_share(self, signature: Signature) -> bool:
        if not self.model.may_share(signature):
            return False
        self._shared = signature
        return True

    def due_ns(self) -> int:
        """When the head's batch must start at the latest: 0 = now."""
        policy = self.model.queue
        delay_ns = policy.max_queue_delay_ns
        if not delay_ns or not self.model.max_batch_size:
            return 0
        target = policy.preferred_batch_sizes[-1] if policy.preferred_batch_sizes else self.model.max_batch_size
        if self.rows >= target or self.requests[0].isolated:
            return 0
        return self.requests[0].arrived_ns + delay_ns


class Batcher:
    """All models' queues, taking turns."""

    def __init__(self) -> None:
        self._turns: collections.deque[ModelQueue] = collections.deque()
        self._queues: dict[int, ModelQueue] = {}

    def add_model(self, model: Model) -> None:
        self._queues[model.slot] = ModelQueue(model)

    def remove_model(self, slot: int) -> ModelQueue | None:
        """Forget a model; return what still waits for it."""
        queue = self._queues.pop(slot, None)
        if queue is not None and queue.requests:
            self._turns.remove(queue)
        return queue

    def model_of(self, slot: int) -> Model | None:
        queue = self._queues.get(slot)
        return queue.model if queue is not None else None

    def queue_of(self, slot: int) -> ModelQueue | None:
        return self._queues.get(slot)

    def witness_bytes(self) -> int:
        """What the witnesses of all sessions keep; arms share their version's."""
        witnesses = {id(queue.model.witness): queue.model.witness.kept_bytes for queue in self._queues.values()}
        return sum(witnesses.values())

    def enqueue(self, queue: ModelQueue, request: Request) -> None:
        if not queue.requests:
            self._turns.append(queue)
        if request.priority:
            queue.insert(request)
        else:
            queue.requests.append(request)
        queue.rows += request.rows

    def next_batch(self, now_ns: int) -> tuple[ModelQueue, list[Request]] | None:
        """The next batch that may start at `now_ns`, or None."""
        turns = self._turns
        for _ in range(len(turns)):
            queue = turns.popleft()
            if queue.due_ns() > now_ns:
                turns.append(queue)
                continue
            batch = queue.take()
            if queue.requests:
                turns.append(queue)
            return queue, batch
        return None

    def next_due_ns(self) -> int:
        """When the earliest waiting batch is due; 0 when nothing waits. Only after next_batch gave None."""
        return min([queue.due_ns() for queue in self._turns]) if self._turns else 0
