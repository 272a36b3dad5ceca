"""What each part of RMPE buys on noisy boxes: a table of OKS AP.

    python -m benchmarks.rmpe_ablation --data data/prepared/crowd
    python -m benchmarks.rmpe_ablation --data data/prepared/collage --begin data/prepared/synthetic

The detector is an imagined one that loses limbs: each edge of a true box moves towards the torso by a random share of
what lies beyond it (Beta(1, 2) of at most LOSS), then by a Gaussian of JITTER of the side. A box's score is its
intersection over union with the true one, with noise. One pose network is trained on true boxes; then, from there and
for as long, four ways of training go on, each with one part more:

alone        the pose network, on true boxes with the usual augmentation
proposals    on boxes drawn from mixtures per pose atom, fitted to the detector's boxes of the training split
transformer  with the spatial transformer and its inverse
twin         with the frozen twin's loss, too

true, noisy       one box per person
several           PROPOSALS noisy boxes per person, nothing suppressed; scores are box x mean joint
oks_nms           OKS-NMS at 0.9 on those
released, fitted  pose NMS on those: the released numbers, and numbers fitted to the training split as AlphaPose's are

Crops are the stored ones (twice the true box), seen through the noisy boxes. Networks are narrow and epochs few: it
compares parts, not systems. On few real people it learns little: with --begin the pose network first learns on another
dataset of the same skeleton. Several seeds say how far chance reaches. JSON on stdout, the tables (AP, AP50) on stderr.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pose.config import ROOT
from pose.config_loading import load
from pose.data import detections
from pose.data.batch import Batch
from pose.data.loader import Loader
from pose.data.shards import Split
from pose.decoding import oks_nms, pose_nms_fit
from pose.decoding.pose_nms import PoseNms, pose_nms
from pose.decoding.pose_nms_fit import PROPOSALS
from pose.decoding.proposals import shift_edges
from pose.decoding.settling import EVERYONE
from pose.errors import ConfigError, PoseError
from pose.evaluate_oks import read_truth
from pose.metrics import oks
from pose.metrics.truth import sigmas_of
from pose.people import People
from pose.progress import say, track
from pose.skeleton import Skeleton
from pose.systems import create
from pose.systems.base import System
from pose.training.distributed import World
from pose.training.sampling import epoch_order, steps_per_epoch
from pose.training.stage import Stage

LOSS, JITTER, SCORE_NOISE = 0.8, 0.06, 0.1
FIT_IMAGES = 60
METRICS = ("ap", "ap50")
NARROW: dict[str, Any] = {
    "input_size": (64, 96),
    "pose": {"depth": 18, "width": 24},
    "localisation": {"depth": 18, "width": 12},
    "upsampling": [48, 32],
    "sigma": 1.0,
    "flip_test": False,
}
WAYS: dict[str, dict[str, Any]] = {
    "alone": {"train": ["pose"], "losses": {"maps": 1.0}, "moved": False},
    "proposals": {"train": ["pose"], "losses": {"maps": 1.0}, "moved": True},
    "transformer": {"train": ["transformer", "pose"], "losses": {"maps": 1.0}, "moved": True},
    "twin": {"train": ["transformer", "pose"], "losses": {"maps": 1.0, "parallel": 0.5}, "moved": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=ROOT / "data/prepared/crowd", help="a prepared person-view dataset"
    )
    parser.add_argument("--begin", type=Path, help="a prepared dataset that the pose network learns on before --data")
    parser.add_argument("--epochs", type=int, default=8, help="on true boxes first, and again for each way")
    parser.add_argument("--people", type=int, default=100_000, help="at most so many of the training split")
    parser.add_argument("--images", type=int, default=100_000, help="at most so many of the validation split")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="that networks train in")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    began = time.monotonic()
    try:
        runs = [ablate(arguments, seed) for seed in range(arguments.seeds)]
    except PoseError as error:
        say(str(error))
        sys.exit(error.exit_code)
    tables = {metric: _mean(runs, metric) for metric in METRICS}
    for metric, table in tables.items():
        _show(metric, table)
    minutes = round((time.monotonic() - began) / 60, 1)
    print(json.dumps({**tables, "minutes": minutes, "epochs": arguments.epochs, "runs": runs}, indent=2))


def _mean(runs: list[dict[str, Any]], metric: str) -> dict[str, dict[str, float]]:
    """By way and column, of all seeds."""
    columns = runs[0][metric]["alone"]
    return {
        way: {column: round(statistics.mean(run[metric][way][column] for run in runs), 4) for column in columns}
        for way in WAYS
    }


def _show(metric: str, table: dict[str, dict[str, float]]) -> None:
    columns = list(next(iter(table.values())))
    say(f"{metric.upper():<12}" + "".join(f"{column:>10}" for column in columns))
    for way, row in table.items():
        say(f"{way:<12}" + "".join(f"{100 * row[column]:>10.1f}" for column in columns))


def ablate(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """METRICS by way and column, and the fitted numbers, of one seed."""
    train, val = Split.open(arguments.data, "train"), Split.open(arguments.data, "val")
    people, epochs, precision = arguments.people, arguments.epochs, arguments.precision
    before = Split.open(arguments.begin, "train") if arguments.begin else None
    if before is not None and before.skeleton != train.skeleton:
        raise ConfigError(
            f"--begin {arguments.begin} has the joints of {before.skeleton.name}, --data {arguments.data} those of "
            f"{train.skeleton.name}; expected the same"
        )
    with tempfile.TemporaryDirectory(prefix="pose-rmpe-") as folder:
        found = Path(folder) / "train.json"
        boxes, scores = detector(train, 1, seed)
        detections.write(found, detections.ordered(train.image_ids, boxes[:, 0], scores[:, 0]))
        first = narrow("alone", epochs, found, train.skeleton, seed)
        if before is not None:
            train_phase(first, 0, before, people, seed, precision)
        train_phase(first, 0, train, people, seed, precision)
        result: dict[str, Any] = {metric: {} for metric in METRICS} | {"fitted": {}}
        for way in WAYS:
            system = narrow(way, epochs, found, train.skeleton, seed)
            # The buffers of proposals have the same shape whether boxes are moved or not.
            system.network.load_state_dict(first.network.state_dict())
            train_phase(system, 1, train, people, seed, precision)
            figures, fitted = measure(system, train, val, arguments.data, arguments.images, seed)
            for metric in METRICS:
                result[metric][way] = {column: round(values[metric], 4) for column, values in figures.items()}
            result["fitted"][way] = asdict(fitted)
            say(f"seed {seed}, {way}: AP {result['ap'][way]}")
    return result


def narrow(way: str, epochs: int, found: Path, skeleton: Skeleton, seed: int) -> System:
    """A small AlphaPose that is trained this way; fresh weights depend on the seed alone."""
    whole = load().systems["alphapose"].model_dump()
    recipe = whole["recipes"]["modern"] | {"batch_size": 32}
    chosen = WAYS[way]
    recipe["phases"] = [
        {"name": "pose", "epochs": epochs, "train": ["pose"], "losses": {"maps": 1.0}},
        {"name": "rmpe", "epochs": epochs, "train": chosen["train"], "losses": chosen["losses"], "lr_factor": 0.5},
    ]
    # Where boxes stay, the phase they would move in never comes.
    phases = ["rmpe"] if chosen["moved"] else ["never"]
    never = {**recipe, "phases": [{**recipe["phases"][0], "name": "never"}]}
    proposals = {"phases": phases, "atoms": 6, "components": 3, "detections": str(found)}
    changes = {"recipe": "modern", "recipes": {"modern": recipe, "never": never}, "proposals": proposals}
    params = type(load().systems["alphapose"]).model_validate({**whole, **NARROW, **changes})
    torch.manual_seed(seed)
    return create("alphapose", params, skeleton)


def train_phase(system: System, number: int, split: Split, people: int, seed: int, precision: str) -> None:
    """One phase of the system's recipe on at most so many of a split's people; its averaged weights stay.

    With the project's own stage.
    """
    recipe, world = system.params.chosen, World(device=torch.device("cpu"))
    rows = np.arange(min(people, len(split)))
    phase, loader = recipe.phases[number], Loader(split, threads=1)
    steps = steps_per_epoch(len(rows), recipe.batch_size)

    def plain() -> Iterator[Any]:
        return loader.batches(rows, recipe.batch_size, None, seed, 0)

    def epoch(index: int) -> Iterator[Any]:
        order = rows[epoch_order(len(rows), seed, index)][: steps * recipe.batch_size]
        return loader.batches(order, recipe.batch_size, recipe.augment, seed, index)

    system.network.eval()
    system.begin_phase(phase, plain)
    training = load().training.model_copy(update={"threads": 1, "precision": precision})
    total, batch_rows = phase.epochs * steps, min(recipe.batch_size, len(rows))
    stage = Stage(system, recipe, phase, training, world, total, batch_rows, next(epoch(0)))
    stage.train_mode()
    batches = (batch for index in range(phase.epochs) for batch in epoch(number * phase.epochs + index))
    for step, batch in enumerate(track(batches, f"{phase.name}, {', '.join(phase.train)}", total=total)):
        stage.step(batch, step)
    with stage.averaged():
        weights = {name: tensor.clone() for name, tensor in system.network.state_dict().items()}
    system.network.load_state_dict(weights)
    system.network.eval()


# ---------------------------------------------------------------- the imagined detector, and what it finds


def detector(split: Split, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, count, 4] xyxy and scores [N, count] of every person of a split."""
    rng = np.random.default_rng(seed)
    skeleton, boxes = split.skeleton, split.boxes[:, None].astype(np.float64)
    trunk = [skeleton.index(f"{side}_{joint}") for side in ("left", "right") for joint in ("shoulder", "hip")]
    whole = split.labelled[:, trunk].all(axis=1)
    torso = np.concatenate([split.keypoints[:, trunk].min(axis=1), split.keypoints[:, trunk].max(axis=1)], axis=1)
    core = np.where(whole[:, None], torso, split.boxes)[:, None]
    sides = np.tile(boxes[..., 2:] - boxes[..., :2], 2)
    lost = LOSS * rng.beta(1, 2, (len(split), count, 4))
    offsets = (lost * (core - boxes) + JITTER * rng.standard_normal(lost.shape) * sides) / sides
    flat = torch.from_numpy(np.repeat(boxes, count, axis=1).reshape(-1, 4))
    moved = shift_edges(flat, torch.from_numpy(offsets.reshape(-1, 4))).numpy().reshape(-1, count, 4)
    common = np.clip(np.minimum(moved[..., 2:], boxes[..., 2:]) - np.maximum(moved[..., :2], boxes[..., :2]), 0, None)
    areas = [(b[..., 2:] - b[..., :2]).prod(axis=-1) for b in (moved, boxes)]
    overlap = common.prod(axis=-1) / (areas[0] + areas[1] - common.prod(axis=-1))
    return moved, np.clip(overlap + SCORE_NOISE * rng.standard_normal(overlap.shape), 0.05, 1)


def poses(system: System, batch: Batch, boxes: torch.Tensor) -> People:
    """Those of a batch's people seen through these boxes [B, 4]."""
    with torch.inference_mode():
        ready = system.prepare(replace(batch, boxes=boxes.float()))
        return system.decode(system.forward(system.network, ready), ready)


def predict(system: System, split: Split, rows: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> People:
    """A pose per box [R, P, 4] of these rows; `person_scores` are the boxes' [R, P]."""
    parts, first = [], 0
    for batch in Loader(split, threads=1).batches(rows, 64, None, 0, 0):
        for number in range(boxes.shape[1]):
            here = slice(first, first + len(batch))
            people = poses(system, batch, torch.from_numpy(boxes[here, number]))
            parts.append(replace(people, person_scores=scores[here, number].astype(np.float32)))
        first += len(batch)
    return People.concatenate(parts)


def measure(
    system: System, train: Split, val: Split, data: Path, images: int, seed: int
) -> tuple[dict[str, dict[str, float]], PoseNms]:
    """OKS metrics by column, and the fitted numbers."""
    skeleton = val.skeleton
    rows, truth = first_images(val, data / "val.json", images)

    def figures(people: People) -> dict[str, float]:
        return oks.evaluate(people, truth, skeleton).metrics

    true = predict(system, val, rows, val.boxes[rows, None], np.ones((len(rows), 1)))
    boxes, scores = (values[rows] for values in detector(val, PROPOSALS, seed + 1))
    several = predict(system, val, rows, boxes, scores)
    one = predict(system, val, rows, boxes[:, :1], scores[:, :1])
    ranked = oks_nms.rescored(several, several.person_scores)
    fitted = fit(system, train, data, seed)
    kept = oks_nms.suppress(ranked, sigmas_of(skeleton), oks_nms.box_areas(ranked.boxes))
    columns = {
        "true": oks_nms.rescored(true, true.person_scores),
        "noisy": oks_nms.rescored(one, one.person_scores),
        "several": ranked,
        "oks_nms": ranked.select(kept),
        "released": pose_nms(several, EVERYONE),
        "fitted": pose_nms(several, fitted),
    }
    return {name: figures(people) for name, people in columns.items()}, fitted


def first_images(split: Split, annotations: Path, count: int) -> tuple[np.ndarray, dict[str, Any]]:
    """The rows of people in at most so many images of a split, and the annotations of just those."""
    whole = json.loads(annotations.read_text())
    images = whole["images"][:count]
    chosen = [image["id"] for image in images]
    told = [annotation for annotation in whole["annotations"] if annotation["image_id"] in set(chosen)]
    return np.flatnonzero(np.isin(split.image_ids, chosen)), {**whole, "images": images, "annotations": told}


def fit(system: System, train: Split, data: Path, seed: int) -> PoseNms:
    """Pose NMS's numbers for the system's own poses in the imagined detector's boxes of the training split."""
    boxes, scores = detector(train, PROPOSALS, seed + 2)
    truth = read_truth(data, "train", train.skeleton)

    def found(batch: Batch, number: int) -> tuple[torch.Tensor, np.ndarray]:
        rows = batch.sample.numpy()
        return torch.from_numpy(boxes[rows, number]), scores[rows, number]

    def quality(people: People) -> float:
        return oks.evaluate(people, truth.of_images(people.image_ids), train.skeleton).metrics["ap"]

    batches = Loader(train, threads=1).batches(np.arange(len(train)), 64, None, 0, 0)
    return pose_nms_fit.fit(batches, FIT_IMAGES, found, partial(poses, system), quality)[0]


if __name__ == "__main__":
    main()
