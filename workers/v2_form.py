"""The answer to POST /v2/models/{model_name}/infer: JSON, with the values of outputs in it or, in binary, behind it."""

from typing import Any

import msgspec

from nexus_grpc.ipc.wire import http_body, json_body

from .http_forms import TIMING_FIELDS, HttpForm
from .infer_form import RequestedOutput
from .json_tensors import json_values
from .request_parameters import FINAL_RESPONSE, Asked
from .requests import Timings
from .results import BatchResult, top_classes
from .tensors import BYTES, encode_bytes_tensor, text_array
from .v2_envelope import compressed

JSON_TYPE, BINARY_TYPE = b"application/json", b"application/octet-stream"
LENGTH_HEADER, ENCODING_HEADER = "inference-header-content-length", "content-encoding"
_encode = msgspec.json.Encoder().encode


class V2Form(HttpForm):
    """Args:
    own_id: the request's id; empty for the call's.
    outputs, binary: what is to be answered, and for each whether in binary.
    asked: the request's parameters.
    coding: "gzip", "deflate" or "".
    """

    __slots__ = ("asked", "binary", "coding", "outputs")

    def __init__(
        self,
        own_id: str,
        outputs: tuple[RequestedOutput, ...],
        binary: tuple[bool, ...],
        asked: Asked,
        coding: str = "",
    ) -> None:
        super().__init__(own_id)
        self.outputs = outputs
        self.binary = binary
        self.asked = asked
        self.coding = coding

    def encode(self, result: BatchResult, first: int, last: int, timings: Timings, request_id: bytes) -> bytes:
        answer = self.answer(result, first, last, timings, self.request_id or request_id.decode("ascii", "replace"))
        raws = [self._pull_out(output) for output in answer["outputs"] if "raw" in output]
        text = _encode(answer)
        headers = {LENGTH_HEADER: str(len(text))} if raws else {}
        packed = compressed([text, *raws], self.coding)
        if packed is not None:
            headers[ENCODING_HEADER] = self.coding
        elif not raws:
            return json_body(text)
        return http_body(BINARY_TYPE if raws else JSON_TYPE, packed or [text, *raws], headers)

    def _pull_out(self, output: dict[str, Any]) -> bytes:
        raw: bytes = output.pop("raw")
        output["parameters"] = {"binary_data_size": len(raw)}
        return raw

    def answer(self, result: BatchResult, first: int, last: int, timings: Timings, request_id: str) -> Any:
        answer: dict[str, Any] = {"model_name": result.model.name, "model_version": result.model.version}
        answer["id"] = request_id
        parameters: dict[str, Any] = {"nexus_variant": result.model.variant} if result.model.is_arm else {}
        if self.asked.timing:
            parameters |= {f"nexus_{name}": getattr(timings, name) for name in TIMING_FIELDS}
        if self.asked.final:
            parameters[FINAL_RESPONSE] = True
        if parameters:
            answer["parameters"] = parameters
        answer["outputs"] = [
            self._output(result, each, binary, first, last)
            for each, binary in zip(self.outputs, self.binary, strict=True)
        ]
        return answer

    def _output(
        self, result: BatchResult, requested: RequestedOutput, binary: bool, first: int, last: int
    ) -> dict[str, Any]:
        """With its `data`, or `raw` instead."""
        spec = result.model.outputs[requested.index]
        array = result.array(requested.index, first, last)
        if requested.classes:
            return self._classes(result, requested, binary, array)
        output: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype.name, "shape": list(array.shape)}
        if binary:
            output["raw"] = encode_bytes_tensor(array) if spec.datatype is BYTES else array.tobytes()
        else:
            output["data"] = json_values(array)
        return output

    def _classes(self, result: BatchResult, requested: RequestedOutput, binary: bool, array: Any) -> dict[str, Any]:
        spec = result.model.outputs[requested.index]
        rows = array if result.is_cut else [array]
        found = [[item.decode() for item in top_classes(row, requested.classes, spec.labels)] for row in rows]
        shape = [len(found), len(found[0])] if result.is_cut else [len(found[0])]
        flat = [item for row in found for item in row]
        output: dict[str, Any] = {"name": spec.name, "datatype": BYTES.name, "shape": shape}
        if binary:
            output["raw"] = encode_bytes_tensor(text_array(flat))
        else:
            output["data"] = flat
        return output
