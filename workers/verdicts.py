"""What requests end with that fail in a worker, and whose fault that is."""

import time
import traceback
from collections.abc import Callable

from nexus_grpc.ipc.errors import InferenceFailed, NexusError, Overloaded, RejectedInput
from nexus_grpc.ipc.record import Blame
from nexus_grpc.ipc.stats import WorkerStats

from .batcher import Batcher
from .model import Model
from .requests import Request
from .tensors import Array

# What the witnesses of all sessions keep together (witness.py).
WITNESS_BYTES_MAX = 64 << 20


class Verdicts:
    """Used on the loop's thread. `report` tells the supervisor of a bug."""

    def __init__(self, batcher: Batcher, stats: WorkerStats, report: Callable[[str], None]) -> None:
        self._batcher = batcher
        self._stats = stats
        self._report = report

    def of(self, error: Exception) -> NexusError:
        """Of what failed outside of a run. Whatever else than a NexusError comes is a bug of ours: it is reported, and
        costs its request alone."""
        if isinstance(error, NexusError):
            return error
        if isinstance(error, MemoryError):
            return Overloaded("the worker has no memory for this request; send fewer rows at once")
        self._report("".join(traceback.format_exception(error)))
        return InferenceFailed(f"internal error in the worker ({type(error).__name__}); see the server's log")

    def of_run(self, model: Model, error: Exception) -> NexusError:
        """Of a request that ran alone. Whose fault it is that the model did not run, its witness says."""
        if not isinstance(error, InferenceFailed):
            return self.of(error)
        self._stats.busy(time.monotonic_ns())
        blame = model.witness.blame(model.run)
        if blame is Blame.MODEL:
            error.blame = blame
            return error
        doubt = "" if blame is Blame.INPUT else " (it has run on no input yet, so it may be at fault itself)"
        return RejectedInput(f"the model does not run on this input{doubt}: {error.message}")

    def keep(self, model: Model, feeds: dict[str, Array], batch: list[Request], run_ns: int) -> None:
        """A batch has run: its first request may be the model's known good input from now on."""
        room_bytes = WITNESS_BYTES_MAX - self._batcher.witness_bytes()
        # An initialiser that was given has no rows; whoever gives one runs alone.
        is_cut = model.max_batch_size and not any([spec.is_constant and spec.name in feeds for spec in model.inputs])
        model.witness.keep(feeds, batch[0].rows if is_cut else 0, run_ns, room_bytes)
