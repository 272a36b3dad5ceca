"""The step between training and evaluation: what a system fits to the training split once its network is trained.

A training folder's `fitted/` then holds model.safetensors, the network with what was fitted in its buffers, and
fitted.json, which says it to people: DeepCut's pairwise regressions, AlphaPose's numbers of pose NMS. On the CPU, like
evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from pose.alone import alone
from pose.config import ROOT
from pose.data.loader import open_loader
from pose.data.shards import describe
from pose.digests import tree_sha256
from pose.evaluate_oks import read_truth
from pose.inference.weights import FACTS, FITTED, WEIGHTS
from pose.metrics import oks
from pose.metrics.truth import Truth
from pose.people import People
from pose.progress import say
from pose.skeleton import skeleton_named
from pose.systems import SYSTEMS, create, restore
from pose.training import Outcome, TrainingSpec

CODE = ("pose/fitting.py", "pose/metrics/*.py", "pose/evaluate_oks.py", "pose/people.py")
"""Source files that decide what is fitted, besides those that decide the trained weights."""


def needed(spec: TrainingSpec) -> bool:
    """Whether the system of this specification has something to fit after its training."""
    with torch.device("meta"):
        return create(spec.system, spec.system_params, skeleton_named(describe(spec.data).skeleton)).fits


def fit(spec: TrainingSpec, outcome: Outcome) -> Path:
    """The training's `fitted` folder, made, or found where weights and code are those it was made with.

    Raises DataError for a training split without annotations.
    """
    folder = outcome.run_dir / FITTED
    made_of = {"weights_sha256": outcome.weights_sha256, "code": tree_sha256(ROOT, CODE)}
    with alone(outcome.run_dir / "fitted.lock", f"{spec.name} is being fitted by another process"):
        facts = folder / FACTS
        if not facts.is_file() or json.loads(facts.read_text())["made of"] != made_of:
            _fit(spec, outcome, folder, made_of)
    return folder


def _fit(spec: TrainingSpec, outcome: Outcome, folder: Path, made_of: dict[str, str]) -> None:
    loader = open_loader(SYSTEMS[spec.system].view, spec.data, "train", spec.params.training.loader_threads)
    system = restore(create(spec.system, spec.system_params, loader.split.skeleton), outcome.weights)

    def batches() -> Iterator[Any]:
        rows = np.arange(len(loader.split))
        return loader.batches(rows, spec.recipe.batch_size, None, spec.params.seed, 0)

    @cache
    def truth() -> Truth:
        return read_truth(spec.data, "train", system.skeleton)

    def quality(people: People) -> float:
        return oks.evaluate(people, truth().of_images(people.image_ids), system.skeleton).metrics["ap"]

    facts = system.fit(batches, quality)
    folder.mkdir(exist_ok=True)
    (folder / FACTS).unlink(missing_ok=True)  # whoever reads the weights asks for it first
    state = {name: tensor.contiguous() for name, tensor in system.network.state_dict().items()}
    save_file(state, folder / f"{WEIGHTS}.partial")
    (folder / f"{WEIGHTS}.partial").replace(folder / WEIGHTS)
    (folder / f"{FACTS}.partial").write_text(json.dumps({"made of": made_of, **facts}, indent=1) + "\n")
    (folder / f"{FACTS}.partial").replace(folder / FACTS)
    say(f"{spec.system}: fitted to the training split, see {folder / FACTS}")
