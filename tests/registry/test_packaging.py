"""A scene model's bundle loads with MLflow alone: boxes and people in any number."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import onnx
from onnx import TensorProto, helper

from pose.registry.packaging import write_mlmodel


def write_scene_network(path: Path) -> None:
    """images [1, 3, 8, 8] uint8 to as many people as the first pixel says, all zeros."""
    shapes = {"boxes": [4], "person_scores": [], "keypoints": [3, 2], "scores": [3], "presence": [3]}
    nodes = [
        helper.make_node("Slice", ["images", "zeros", "ones", "axes"], ["pixel"]),
        helper.make_node("Cast", ["pixel"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["wide", "one"], ["count"]),
    ]
    constants = {"zeros": [0, 0, 0, 0], "ones": [1, 1, 1, 1], "axes": [0, 1, 2, 3], "one": [1]}
    for name, shape in shapes.items():
        constants[f"{name}_shape"] = shape
        nodes.append(helper.make_node("Concat", ["count", f"{name}_shape"], [f"{name}_size"], axis=0))
        nodes.append(helper.make_node("ConstantOfShape", [f"{name}_size"], [name]))
    graph = helper.make_graph(
        nodes,
        "scenes",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 3, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["people", *s]) for name, s in shapes.items()],
        [helper.make_tensor(name, TensorProto.INT64, [len(values)], values) for name, values in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def test_a_scene_bundle_says_what_it_takes_and_finds_any_number_of_people(tmp_path: Path) -> None:
    write_scene_network(tmp_path / "model.onnx")
    described = {
        "system": "tiny",
        "view": "scene",
        "skeleton": "three",
        "joints": ["a", "b", "c"],
        "input_size": [8, 8],
    }
    (tmp_path / "model.json").write_text(json.dumps(described))
    write_mlmodel(tmp_path)
    loaded = mlflow.pyfunc.load_model(str(tmp_path))
    signature = loaded.metadata.signature
    assert signature.inputs.inputs[0].shape == (1, 3, 8, 8)
    shapes = {output.name: output.shape for output in signature.outputs.inputs}
    assert shapes == {
        "boxes": (-1, 4), "person_scores": (-1,), "keypoints": (-1, 3, 2), "scores": (-1, 3), "presence": (-1, 3)
    }  # fmt: skip
    for people in (0, 1, 60):
        answer = loaded.predict({"images": np.full((1, 3, 8, 8), people, np.uint8)})
        assert {name: part.shape for name, part in answer.items()} == {
            name: (people, *shape[1:]) for name, shape in shapes.items()
        }
