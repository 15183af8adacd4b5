"""A front process: `python -m nexus_grpc.front.main CONTROL_FD LOG_FD`. Started by the supervisor only."""

import os
import sys
import threading

from nexus_grpc import compiled, logs
from nexus_grpc.ipc.control import ChannelClosed, ControlChannel
from nexus_grpc.ipc.process import control_socket, move_to_core, settle_memory, start_child

# Hand the interpreter over quickly between the ingress and the egress thread (CPython's default is 5 ms).
SWITCH_INTERVAL_S = 0.0005


def main() -> None:
    channel = ControlChannel(control_socket(int(sys.argv[1])))
    hello, descriptors = channel.receive()
    logs.write_to(int(sys.argv[2]))
    start_child("front", hello["index"], hello["supervisor_pid"], hello["cpus"])
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    if hello["compiled"]:
        compiled.use()
    # Only now what imports grpc: it starts threads, which inherit affinity. Ours move to a core of their own later.
    from nexus_grpc.front.front import Front

    front = Front(channel, hello, descriptors)

    def control() -> None:
        try:
            front.control()
        except ChannelClosed:
            os._exit(1)

    threading.Thread(target=control, daemon=True, name="control").start()
    settle_memory()
    move_to_core(hello["own_cpu"])
    front.run()
    # The core's threads have nothing left to say; an orderly interpreter exit could only hang on them.
    os._exit(0)


if __name__ == "__main__":
    main()
