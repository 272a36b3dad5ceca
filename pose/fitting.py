"""The step between training and evaluation: what a system fits to the training split once its network is trained.

A training folder's `fitted/` then holds model.safetensors, the network with what was fitted in its buffers, and
fitted.json, which says it to people: DeepCut's pairwise regressions, AlphaPose's numbers of pose NMS.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from pose.alone import alone
from pose.data.loader import open_loader
from pose.evaluate_oks import read_truth
from pose.inference.weights import FITTED, WEIGHTS
from pose.progress import say
from pose.systems import create, restore
from pose.systems.base import System
from pose.training import Outcome, TrainingSpec
from pose.training.distributed import World

FACTS = "fitted.json"


def needed(spec: TrainingSpec) -> bool:
    """Whether the system of this specification has something to fit after its training."""
    return _fresh(spec).fits


def fit(spec: TrainingSpec, outcome: Outcome) -> Path:
    """The training's `fitted` folder, made or found. Raises DataError for a training split without annotations."""
    folder = outcome.run_dir / FITTED
    with alone(outcome.run_dir / "fitted.lock", f"{spec.name} is being fitted by another process"):
        if not (folder / FACTS).is_file():
            _fit(spec, outcome, folder)
    return folder


def _fresh(spec: TrainingSpec) -> System:
    import torch

    from pose.data.shards import describe
    from pose.skeleton import skeleton_named

    with torch.device("meta"):
        return create(spec.system, spec.system_params, skeleton_named(describe(spec.data).skeleton))


def _fit(spec: TrainingSpec, outcome: Outcome, folder: Path) -> None:
    loader = open_loader(_fresh(spec).view, spec.data, "train", spec.params.training.loader_threads)
    system = restore(create(spec.system, spec.system_params, loader.split.skeleton), outcome.weights)
    device = World().device
    system.network.to(device)

    def batches() -> Iterator[Any]:
        rows = np.arange(len(loader.split))
        for batch in loader.batches(rows, spec.recipe.batch_size, None, spec.params.seed, 0):
            yield batch.to(device)

    facts = system.fit(batches, partial(read_truth, spec.data, "train", system.skeleton))
    folder.mkdir(exist_ok=True)
    state = {name: tensor.cpu().contiguous() for name, tensor in system.network.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    unfinished = folder / f"{FACTS}.partial"
    unfinished.write_text(json.dumps(facts, indent=1) + "\n")
    unfinished.replace(folder / FACTS)
    say(f"{spec.system}: fitted to the training split, see {folder / FACTS}")
