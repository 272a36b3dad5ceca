"""What MLflow needs to load a bundle by itself: MLmodel with signature, example and pinned requirements."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np

from pose.bundle import read_description

REQUIREMENTS = ("mlflow", "onnx", "onnxruntime", "numpy")


def write_mlmodel(bundle: Path) -> None:
    """Adds MLmodel, requirements and an input example, so that mlflow.onnx and mlflow.pyfunc load the bundle.

    The flavour is ONNX: loading it executes no code of ours and no pickle.
    """
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec
    from mlflow.utils.environment import _PythonEnv

    description = read_description(bundle)
    (width, height), joints = description["input_size"], len(description["joints"])
    outputs = {"keypoints": (-1, joints, 2), "scores": (-1, joints), "presence": (-1, joints)}
    scene = description.get("view") == "scene"  # bundles of before there were scenes do not say
    if scene:
        outputs = {"boxes": (-1, 4), "person_scores": (-1,), **outputs}
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("uint8"), (1 if scene else -1, 3, height, width), "images")]),
        outputs=Schema([TensorSpec(np.dtype("float32"), shape, name) for name, shape in outputs.items()]),
    )
    requirements = [f"{name}=={version(name)}" for name in REQUIREMENTS]
    (bundle / "requirements.txt").write_text("\n".join(requirements) + "\n")
    _PythonEnv(dependencies=["-r requirements.txt"]).to_yaml(str(bundle / "python_env.yaml"))
    example = {"images": example_image(width, height)[None].tolist()}
    (bundle / "input_example.json").write_text(json.dumps(example, separators=(",", ":")))

    model = Model(signature=signature, metadata={"system": description["system"], "skeleton": description["skeleton"]})
    model.saved_input_example_info = {
        "artifact_path": "input_example.json",
        "type": "ndarray",
        "format": "tf-serving",
    }
    pyfunc.add_to_model(
        model, loader_module="mlflow.onnx", data="model.onnx", python_env="python_env.yaml", conda_env=None
    )
    model.add_flavor(
        "onnx", onnx_version=version("onnx"), data="model.onnx", providers=["CPUExecutionProvider"],
        onnx_session_options=None, code=None,
    )  # fmt: skip
    model.save(str(bundle / "MLmodel"))


def example_image(width: int, height: int) -> np.ndarray:
    """[3, H, W] uint8: two ramps and a constant. No picture of the data set travels with a model."""
    right, down = (np.linspace(0, 255, side).astype(np.uint8) for side in (width, height))
    flat = np.full((height, width), 128, np.uint8)
    return np.stack([np.tile(right, (height, 1)), np.tile(down[:, None], (1, width)), flat])
