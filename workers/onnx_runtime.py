"""ONNX Runtime, without its telemetry: the only place that imports it, for the server, tools and tests alike.

Its official builds count what they load and run, keep that with a device id under HOME (or, without HOME, in the user's
home folder), and send it to Microsoft (Privacy.md in its package). ORT_DISABLE_TELEMETRY=1 is the one switch that comes
in time: it is read while the library is imported, which writes the files already; disable_telemetry_events() is too
late. Whatever the environment says of it is overruled: what a server sends is not for a variable left over to decide.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

__all__ = ["ort"]
