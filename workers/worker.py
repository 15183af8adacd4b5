"""The worker as the supervisor sees it: control messages in, reports out. The serving is in loop.py."""

import base64
import gc
import os
import queue
import threading
from typing import Any

from nexus_grpc.ipc.control import ControlChannel
from nexus_grpc.ipc.errors import ModelNotServable, NexusError
from nexus_grpc.ipc.ring import Sleeper, ring_by_hand
from nexus_grpc.ipc.stats import WorkerStats, WorkerWord, open_page
from nexus_grpc.pb.inference.model_config_pb2 import ModelConfig

from .link import FrontLink
from .loader import LoadOrder, config_of, load_model, metadata_of, note_batching
from .loop import WorkerLoop
from .memory import trim
from .model import Model
from .predictions import prediction_labels
from .session import available_providers, onnxruntime_version

# See docs/decisions/0008.
GENTLE_NICE = 10


def give_memory_back() -> None:
    """What a session held returns to the system: its objects may hang together in circles, and glibc keeps what is
    freed."""
    gc.collect()
    trim()


class Worker:
    """Control messages:

    load    one model version; answered by `loaded` or `load_failed`
    alias   the same version under another slot, as an experiment's arm; answered alike
    unload  a slot: finish its requests and give its memory back; answered by `unloaded`
    shadow  copies of a slot's batches are run on another's session from now on, or no longer
    attach  a front's segment, doorbell and side socket
    detach  a front is gone
    stop    finish the current batch and exit
    """

    def __init__(self, channel: ControlChannel, hello: dict[str, Any], descriptors: list[int]) -> None:
        page_fd, self._bell = descriptors
        self._channel = channel
        self._cores = max(1, len(hello["cpus"]))
        stats = WorkerStats(open_page(page_fd))
        os.close(page_fd)
        stats.gauge(WorkerWord.PID, os.getpid())
        stats.gauge(WorkerWord.GENERATION, hello["generation"])
        stats.gauge(WorkerWord.SHADOWING, 0)
        self._loop = WorkerLoop(Sleeper(self._bell), stats, self._report_bug, self._report_batching)
        # Metadata and configuration of what is loaded, by slot, for arms.
        self._reports: dict[int, tuple[str, str]] = {}
        self._to_load: queue.SimpleQueue[LoadOrder] = queue.SimpleQueue()
        self._to_load_gently: queue.SimpleQueue[LoadOrder] = queue.SimpleQueue()
        channel.send(
            {"type": "started", "onnxruntime": onnxruntime_version(), "providers": list(available_providers())}
        )

    def run(self) -> None:
        self._loop.run()

    def control(self) -> None:
        """Obey the supervisor, for ever. Raises ChannelClosed when it is gone."""
        while True:
            message, descriptors = self._channel.receive()
            kind = message["type"]
            if kind == "load":
                order = LoadOrder.from_message(message, self._cores)
                (self._to_load if order.starts_threads else self._to_load_gently).put(order)
            elif kind == "alias":
                self._tell_loop(lambda message=message: self._alias(message))
            elif kind == "unload":
                self._tell_loop(lambda slot=message["slot"]: self._unload(slot))
            elif kind == "shadow":
                self._tell_loop(lambda message=message: self._shadow(message))
            elif kind == "attach":
                link = FrontLink(message["front"], *descriptors)
                self._tell_loop(lambda link=link: self._loop.attach(link))
            elif kind == "detach":
                self._tell_loop(lambda front=message["front"]: self._loop.detach(front))
            elif kind == "stop":
                self._tell_loop(self._loop.stop)

    def _tell_loop(self, command: Any) -> None:
        self._loop.commands.append(command)
        ring_by_hand(self._bell)

    def load(self) -> None:
        """Load what the supervisor asks for, one after the other, for ever. Raises ChannelClosed when it is gone."""
        self._load_from(self._to_load)

    def load_gently(self) -> None:
        """As `load`, giving way to everything else: the calling thread is this nice from now on, and so are the threads
        that it starts; hence only models without threads of their own come here."""
        thread = threading.get_native_id()
        # Where the server itself is nicer, less nice is not allowed.
        nice = max(GENTLE_NICE, os.getpriority(os.PRIO_PROCESS, thread))
        os.setpriority(os.PRIO_PROCESS, thread, nice)
        self._load_from(self._to_load_gently)

    def _load_from(self, orders: "queue.SimpleQueue[LoadOrder]") -> None:
        while True:
            self._load(orders.get())

    def _load(self, order: LoadOrder) -> None:
        try:
            model = load_model(order)
        except NexusError as error:
            self._report_failure(order, error.message)
        except Exception as error:
            # Whatever a strange model file provokes, it must not take the worker's other models down.
            self._report_failure(order, ModelNotServable(f"{type(error).__name__}: {error}").message)
        else:
            metadata = base64.b64encode(metadata_of(model).SerializeToString()).decode()
            config = base64.b64encode(config_of(order, model).SerializeToString()).decode()
            self._reports[order.slot] = (metadata, config)
            self._tell_loop(lambda: self._add(model, order.incarnation))

    # --- on the loop's thread ---

    def _add(self, model: Model, incarnation: int) -> None:
        """From here on the loop takes requests for it: not before may the supervisor hear of it."""
        self._loop.add_model(model, incarnation)
        metadata, config = self._reports[model.slot]
        labels = prediction_labels(model)
        report = {"type": "loaded", "slot": model.slot, "metadata": metadata, "config": config}
        self._channel.send({**report, "prediction_labels": labels})

    def _alias(self, message: dict[str, Any]) -> None:
        base = self._loop.batcher.model_of(message["of"])
        if base is None:
            reason = "its version is not loaded in this worker"
            self._channel.send({"type": "load_failed", "slot": message["slot"], "reason": reason})
            return
        self._reports[message["slot"]] = self._reports[message["of"]]
        self._add(base.as_arm(message["slot"], message["variant"]), message.get("incarnation", 0))

    def _unload(self, slot: int) -> None:
        self._loop.remove_model(slot)
        self._reports.pop(slot, None)
        give_memory_back()
        self._channel.send({"type": "unloaded", "slot": slot})

    def _shadow(self, message: dict[str, Any]) -> None:
        self._loop.shadows.set(message["slot"], message["candidate"], message["basis_points"])

    def _report_bug(self, text: str) -> None:
        self._channel.send({"type": "bug", "traceback": text})

    def _report_batching(self, model: Model, reason: str) -> None:
        """The proof of `model` did not hold: what is told of it from now on says so."""
        metadata, encoded = self._reports[model.slot]
        config = ModelConfig.FromString(base64.b64decode(encoded))
        note_batching(config, model)
        encoded = base64.b64encode(config.SerializeToString()).decode()
        self._reports[model.slot] = metadata, encoded
        self._channel.send({"type": "batching_ended", "slot": model.slot, "config": encoded, "reason": reason})

    def _report_failure(self, order: LoadOrder, reason: str) -> None:
        self._channel.send({"type": "load_failed", "slot": order.slot, "reason": reason})
