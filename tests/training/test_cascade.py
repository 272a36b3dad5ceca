"""DeepPose through the training loop: phase after phase, and interrupted where its later stages draw their crops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pose.training
from pose.config_loading import load
from pose.training import stage
from pose.training.spec import Outcome, TrainingSpec

PHASES = [
    {"name": "pose", "epochs": 1, "train": ["stage1"], "losses": {"coordinates": 1.0}},
    {"name": "refinement", "epochs": 1, "train": ["stage2"], "losses": {"coordinates": 1.0}},
]
STEPS = 6
"""Of an epoch: 100 rows in batches of 16."""


@pytest.fixture
def spec(dots: Path):
    """spec(storage): a cascade of two very small stages with dropout, batch norm and averaging."""

    def make(storage: Path) -> TrainingSpec:
        params = load(None)
        block = params.systems["deeppose"].model_dump() | {
            "recipe": "small",
            "input_size": 32,
            "stages": 2,
            "stage_size": 28,
            "stride": 1,
            "crops": 3,
            "channels": (4, 4, 4, 4, 4),
            "hidden": [12, 8],
            "dropout": 0.2,
        }
        block["recipes"] = {
            "small": {
                "batch_norm": True,
                "batch_size": 16,
                "ema_decay": 0.9,
                "optimiser": {"kind": "adagrad", "lr": 0.01},
                "schedule": {"kind": "cosine", "warmup_steps": 2},
                "augment": {"scale": 0.1, "rotate": 10, "flip": 0.5},
                "phases": PHASES,
            }
        }
        blocks = params.systems | {"deeppose": type(params.systems["deeppose"]).model_validate(block)}
        engine = params.training.model_dump()
        engine |= {"threads": 1, "checkpoint": {"every_steps": 3, "keep": 2}, "ray": engine["ray"] | {"workers": 0}}
        params = params.model_copy(
            update={"seed": 3, "systems": blocks, "training": type(params.training).model_validate(engine)}
        )
        return TrainingSpec(system="deeppose", params=params, data=dots, data_hash="dots", storage=storage)

    return make


class StoppedError(Exception):
    """Stands for whatever ends a process in the middle of an epoch."""


def interrupt_before(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Makes the next training fail before its so-many-th optimiser step."""
    taken, real = iter(range(step)), stage.Stage.step

    def failing(self, batch, number):
        if next(taken, None) is None:
            raise StoppedError
        real(self, batch, number)

    monkeypatch.setattr(stage.Stage, "step", failing)


def timeless(outcome: Outcome) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in ("seconds", "images_per_second")} for r in outcome.history]


def test_interrupted_across_and_within_phases_equals_uninterrupted(spec, tmp_path, monkeypatch):
    whole = pose.training.run(spec(tmp_path / "whole"))
    assert [record["phase"] for record in whole.history] == ["pose", "refinement"]
    weights = load_file(whole.run_dir / "model.safetensors")
    assert weights["error_covariance"].diagonal(dim1=2, dim2=3).min() > 0
    assert weights["stages.1.25.weight"].any(), "stage 2 moves joints"
    # After so many steps: right on the boundary, where the errors are fitted anew, and within the second stage.
    for step, newest in ((STEPS, STEPS), (STEPS + 5, STEPS + 3)):
        storage = tmp_path / f"broken{step}"
        with monkeypatch.context() as patch:
            interrupt_before(patch, step)
            with pytest.raises(StoppedError):
                pose.training.run(spec(storage))
        resumed = pose.training.run(spec(storage))
        assert resumed.resumed_from == [newest]
        assert resumed.weights_sha256 == whole.weights_sha256
        assert timeless(resumed) == timeless(whole)


def test_first_stage_is_left_alone_by_the_second_phase(spec, tmp_path, monkeypatch):
    before = {}
    real = stage.Stage.__init__

    def watching(self, system, *args, **kwargs):
        real(self, system, *args, **kwargs)
        before[self.phase.name] = {k: v.clone() for k, v in system.network.state_dict().items()}

    monkeypatch.setattr(stage.Stage, "__init__", watching)
    outcome = pose.training.run(spec(tmp_path))
    after = load_file(outcome.run_dir / "model.safetensors")
    first = [key for key in after if key.startswith("stages.0.")]
    assert first
    assert all(torch.equal(after[key], before["refinement"][key]) for key in first)
    assert not any(torch.equal(after[key], before["pose"][key]) for key in first if key.endswith("weight"))
