"""A store that all registry tests share (a new database costs seconds) and small bundles that MLflow can load."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pose.evaluation import Evaluation
from pose.registry import Registry, Version

METRIC = "pck_image_12"


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(tmp_path_factory.mktemp("registry"), uri=None)


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def evaluation(hits: np.ndarray, image_ids: np.ndarray | None = None, mean_pose: float = 0.1) -> Evaluation:
    """An evaluation of images with ten joints each, of which `hits` [I] were found."""
    count = len(hits)
    numerator, denominator = hits.astype(float)[:, None], np.full((count, 1), 10.0)
    value = float(numerator.sum() / denominator.sum())
    return Evaluation(
        split="test", dataset="drawn", people=count,
        image_ids=np.arange(count) if image_ids is None else image_ids,
        confidence=0.95, resamples=200, joints=("head", "foot"), limbs=(),
        metrics={METRIC: value, f"mean_pose_{METRIC}": mean_pose, "mse_unit": 1 - value, "mean_pose_mse_unit": 0.99},
        intervals={METRIC: (value - 0.1, value + 0.1)}, baselines={"mean_pose": {METRIC: mean_pose}},
        per_joint={}, per_joint_intervals={}, per_limb={}, curves={},
        per_image={METRIC: (numerator, denominator), "mse_unit": (10 - numerator, denominator)}, not_applicable=(),
    )  # fmt: skip


def write_network(path: Path) -> None:
    """images [B, 3, 8, 8] uint8 to three joints whose scores and coordinates are the channels' means."""
    shapes = {"keypoints": ["batch", 3, 2], "scores": ["batch", 3], "presence": ["batch", 3]}
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats", "axes"], ["scores"], keepdims=0),
            helper.make_node("Identity", ["scores"], ["presence"]),
            helper.make_node("Unsqueeze", ["scores", "last"], ["column"]),
            helper.make_node("Concat", ["column", "column"], ["keypoints"], axis=2),
        ],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()],
        [
            helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]),
            helper.make_tensor("last", TensorProto.INT64, [1], [2]),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def write_bundle(directory: Path, evaluated: Evaluation) -> Path:
    directory.mkdir(parents=True)
    write_network(directory / "model.onnx")
    for name in ("model.pt2", "model.safetensors"):
        (directory / name).write_bytes(uuid.uuid4().bytes)
    description = {"system": "tiny", "skeleton": "three", "joints": ["a", "b", "c"], "input_size": [8, 8]}
    (directory / "model.json").write_text(json.dumps(description))
    (directory / "card.md").write_text("# tiny\n")
    evaluated.save(directory / "evaluation")
    return directory


@dataclass(frozen=True)
class Factory:
    """Registers versions of one model; `hits` is how many of ten joints it found in each image."""

    registry: Registry
    directory: Path
    name: str

    def register(self, hits: np.ndarray, lineage: dict[str, str] | None = None, **evaluated: object) -> Version:
        return self.offer(evaluation(hits, **evaluated), lineage)  # type: ignore[arg-type]

    def offer(self, measured: Evaluation, lineage: dict[str, str] | None = None) -> Version:
        """Registers a version with this evaluation."""
        fingerprint = uuid.uuid4().hex
        bundle = write_bundle(self.directory / fingerprint, measured)
        run = self.registry.start_run(self.name, fingerprint, {"dataset": "drawn"}, {"lr": 0.1})
        run.finish()
        tags = {"fingerprint": fingerprint, "git_commit": "c0ffee", "data_hash": "da7a", "dataset": "drawn"}
        tags["protocols"] = json.dumps({key: {"id": p.id, **p.parts()} for key, p in measured.protocols.items()})
        tags |= lineage or {}
        return self.registry.register(bundle, self.name, run, tags, measured.metrics)


@pytest.fixture
def factory(registry: Registry, tmp_path: Path) -> Callable[[], Factory]:
    """Each call is a model nobody else has."""
    return lambda: Factory(registry, tmp_path, f"pose-{uuid.uuid4().hex[:8]}")
