"""ONNX Runtime, without its telemetry: the only place that imports it, for the server, tools and tests alike.

Its official builds count what they load and run, keep that with a device id under HOME (or, without HOME, in the user's
home folder), and send it to Microsoft (Privacy.md in its package). ORT_DISABLE_TELEMETRY=1 is the one switch that comes
in time: it is read while the library is imported, which writes the files already; disable_telemetry_events() is too
late. Whatever the environment says of it is overruled: what a server sends is not for a variable left over to decide.

Here is also the memory that all sessions of a process share.
"""

import functools
import os
import threading
from typing import Any

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

__all__ = ["SHRINK_ARENA", "ort", "share_arena", "shrink_arena"]

# What a run is told that is to end by giving the arena's unused blocks back to the system.
SHRINK_ARENA = ("memory.enable_memory_arena_shrinkage", "cpu:0")
_SHARED = ("session.use_env_allocators", "1")
# y = Identity(x), both float[1], as an ONNX file: `onnx`, which would write it, is 12 MB and 0.2 s.
_IDENTITY = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x12"
)


_making = threading.Lock()


def share_arena(options: Any) -> None:
    """Have a session use the process's arena, not one of its own."""
    _keeper()
    options.add_session_config_entry(*_SHARED)


def shrink_arena() -> None:
    """Give the arena's unused blocks back to the system: by a run, of which the arena holds nothing, that ends so."""
    end = ort.RunOptions()
    end.add_run_config_entry(*SHRINK_ARENA)
    session, number = _keeper(), np.zeros(1, np.float32)
    binding = session.io_binding()
    binding.bind_cpu_input("x", number)
    binding.bind_output("y", "cpu", 0, np.float32, [1], number.ctypes.data)
    session.run_with_iobinding(binding, end)


def _keeper() -> Any:
    """The session of our own; with the first one the arena is made."""
    with _making:
        return _made()


@functools.cache
def _made() -> Any:
    binding = ort.capi.onnxruntime_pybind11_state
    kind = binding.OrtMemoryInfo("Cpu", binding.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, binding.OrtMemType.DEFAULT)
    binding.create_and_register_allocator(kind, binding.OrtArenaCfg(0, -1, -1, -1))  # as a session's own is made
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry(*_SHARED)
    session = ort.InferenceSession(_IDENTITY, options, providers=["CPUExecutionProvider"])
    # An arena never gives its first block back: this one is a megabyte.
    session.run(None, {"x": np.zeros(1, np.float32)})
    return session
