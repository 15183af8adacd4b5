"""The worker as the supervisor sees it: control messages in, reports out. The serving is in loop.py."""

import base64
import os
from typing import Any

from nexus_grpc.ipc.control import ControlChannel
from nexus_grpc.ipc.errors import ModelNotServable, NexusError
from nexus_grpc.ipc.ring import Sleeper, ring_by_hand
from nexus_grpc.ipc.stats import WorkerStats, WorkerWord, open_page
from workers.link import FrontLink
from workers.loader import LoadOrder, config_of, load_model, metadata_of
from workers.loop import WorkerLoop
from workers.session import available_providers, onnxruntime_version


class Worker:
    """Control messages:

    load    one model version; answered by `loaded` or `load_failed`
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
        self._loop = WorkerLoop(Sleeper(self._bell), stats, self._report_bug)
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
                self._load(message)
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

    def _load(self, message: dict[str, Any]) -> None:
        order = LoadOrder.from_message(message, self._cores)
        try:
            model = load_model(order)
        except NexusError as error:
            self._report_failure(order, error.message)
        except Exception as error:
            # Whatever a strange model file provokes, it must not take the worker's other models down.
            self._report_failure(order, ModelNotServable(f"{type(error).__name__}: {error}").message)
        else:
            self._tell_loop(lambda: self._loop.add_model(model))
            self._channel.send(
                {
                    "type": "loaded",
                    "slot": order.slot,
                    "metadata": base64.b64encode(metadata_of(model).SerializeToString()).decode(),
                    "config": base64.b64encode(config_of(order, model).SerializeToString()).decode(),
                }
            )

    def _report_bug(self, text: str) -> None:
        self._channel.send({"type": "bug", "traceback": text})

    def _report_failure(self, order: LoadOrder, reason: str) -> None:
        self._channel.send({"type": "load_failed", "slot": order.slot, "reason": reason})
