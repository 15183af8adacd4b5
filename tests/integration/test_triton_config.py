"""A config.pbtxt as Triton repositories have them, served as it is."""

import json
import pathlib

import numpy as np
import tritonclient.grpc as triton

from tests.harness import running_server
from tests.lifecycle import put

CONFIG = """
name: "BertBase"
platform: "onnxruntime_onnx"
max_batch_size: 8
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2, 1 ] reshape { shape: [ 2 ] } } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1, 2 ] reshape { shape: [ 2 ] } } ]
instance_group [ { count: 1 kind: KIND_CPU }, { count: 1 kind: KIND_CPU } ]
dynamic_batching { preserve_ordering: true priority_levels: 2 default_priority_level: 1 }
optimization { graph { level: 1 } input_pinned_memory { enable: true } output_pinned_memory { enable: true } }
model_transaction_policy { decoupled: false }
metric_tags { key: "team" value: "risk" }
parameters { key: "execution_mode" value: { string_value: "1" } }
parameters { key: "inter_op_thread_count" value: { string_value: "2" } }
parameters { key: "enable_mem_arena" value: { string_value: "0" } }
parameters { key: "enable_mem_pattern" value: { string_value: "0" } }
parameters { key: "memory.enable_memory_arena_shrinkage" value: { string_value: "cpu:0" } }
parameters { key: "owner" value: { string_value: "nlp" } }
"""


def test_it_is_served_and_what_has_no_effect_is_noted_once(tmp_path: pathlib.Path) -> None:
    repository = tmp_path / "models"
    put(repository, 3, name="BertBase")
    (repository / "BertBase/config.pbtxt").write_text(CONFIG)
    options = ("--log-format=json", "--poll-seconds=0.3")
    with (
        running_server(tmp_path, *options, repository=repository) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        given = triton.InferInput("x", [2, 2, 1], "FP32")
        given.set_data_from_numpy(np.array([[[1], [2]], [[3], [4]]], np.float32))
        answer = client.infer("BertBase", [given], priority=2).as_numpy("y")
        assert answer.tolist() == [[[3, 6]], [[9, 12]]]
        metadata = client.get_model_metadata("BertBase")
        assert [list(each.shape) for each in (*metadata.inputs, *metadata.outputs)] == [[-1, 2, 1], [-1, 1, 2]]
        config = client.get_model_config("BertBase").config
        assert config.parameters["owner"].string_value == "nlp"
        assert config.optimization.graph.level == 1
        client.unload_model("BertBase")
        client.load_model("BertBase")
        noted = [line for line in server.log_text().splitlines() if "has no effect here" in line]
    (line,) = noted
    notes = json.loads(line)["notes"].split("; ")
    assert [note.partition(":")[0] for note in notes] == [
        "dynamic_batching.preserve_ordering",
        "instance_group",
        "optimization.*_pinned_memory",
        "metric_tags",
        "parameters",
    ]
