"""Recognising a request by its bytes: same bytes around the tensors as last time, so the same meaning.

Protobuf is parsed front to back and a field's meaning depends on its tag alone. When a message has the length of an
earlier one and equals it everywhere outside the contents of its tensor fields, then it parses to the same request with
other tensor values, and neither parsing nor checking need be done again. (BYTES and BOOL contents have an inner form
that must be checked, so they make no templates.)
"""

from nexus_grpc.ipc.record import Method
from nexus_grpc.ipc.wire import WireError, spans
from nexus_grpc.pb.inference import grpc_service_pb2 as infer_pb
from nexus_grpc.pb.nexus.v1 import inference_pb2 as predict_pb

from .model import Model
from .requests import Decoded
from .tensors import BOOL, BYTES

# Where each method carries its tensors.
TENSOR_FIELDS = {
    Method.MODEL_INFER: infer_pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER,
    Method.MODEL_STREAM_INFER: infer_pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER,
    Method.PREDICT: predict_pb.PredictRequest.FEATURES_FIELD_NUMBER,
    Method.PREDICT_STREAM: predict_pb.PredictRequest.FEATURES_FIELD_NUMBER,
}
# Templates kept per model; one per method and message length. More lengths than this and none would pay.
TEMPLATES_MAX = 64


class RequestTemplate:
    """The fixed bytes of a message and where its tensors lie."""

    __slots__ = ("_fixed", "_head", "decoded", "spans")

    def __init__(self, message: bytes, tensor_spans: list[tuple[int, int]], decoded: Decoded) -> None:
        # Without the pieces: they would keep the first message's tensors.
        self.decoded = Decoded(decoded.signature, decoded.rows, [], decoded.form, True, decoded.timeout_ns)
        self.decoded.priority = decoded.priority
        self.spans = tensor_spans
        self._head = message[: tensor_spans[0][0]]
        starts = [end for _, end in tensor_spans]
        ends = [start for start, _ in tensor_spans[1:]] + [len(message)]
        self._fixed = [(start, message[start:end]) for start, end in zip(starts, ends, strict=True) if end > start]

    def matches(self, message: bytes) -> bool:
        """Whether a message of the same length differs from ours in its tensors alone."""
        if not message.startswith(self._head):
            return False
        return not self._fixed or all([message.startswith(piece, start) for start, piece in self._fixed])

    def tensors(self, message: bytes) -> list[bytes]:
        return [message[start:end] for start, end in self.spans]


def find_template(model: Model, method: int, message: bytes) -> RequestTemplate | None:
    template: RequestTemplate | None = model.templates.get((method, len(message)))
    return template if template is not None and template.matches(message) else None


def remember_template(model: Model, method: int, message: bytes, decoded: Decoded) -> None:
    """Keep a template of a message that was decoded in full, if it can have one. Every eighth miss is considered."""
    model.template_misses += 1
    key = (method, len(message))
    if key in model.templates and model.template_misses & 7:
        return
    if method not in TENSOR_FIELDS or (len(model.templates) >= TEMPLATES_MAX and key not in model.templates):
        return
    if not decoded.templatable or any(spec.datatype in (BYTES, BOOL) for spec in model.inputs):
        return
    try:
        found = spans(message, TENSOR_FIELDS[Method(method)])
    except WireError:
        return
    if found and len(found) == len(decoded.pieces):
        template = RequestTemplate(message, found, decoded)
        # A field may come in parts outside the spans, such as unpacked doubles after packed ones.
        if decoded.form.pieces(template.tensors(message)) == decoded.pieces:
            model.templates[key] = template
