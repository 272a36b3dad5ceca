"""How long a picture takes as more people are in it: boxes first, or everyone at once.

    python -m benchmarks.crowding --detector DETECTOR MODEL [MODEL ...] [--plot crowding.png]

Trained models, as bundles or finished training folders. Pictures are drawn, PEOPLE of each number in them, SIDE px to a
side. A model that looks into boxes pays for the detector, and then for one pose in each true box, so that it sees as
many people as there are whatever the detector finds; a scene model has the picture to itself, and how many it finds is
said. Decoding and suppression are in it, as in `pose predict` with that folder; reading files is not. One core, models
in turns, processor time, the median over pictures. JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from pose.config import SyntheticParams
from pose.data import synthetic
from pose.inference.choice import choose, system_of
from pose.inference.pipelines import Boxes, Pipeline, TopDown
from pose.progress import say, track

PEOPLE = (1, 2, 5, 10, 20)
SIDE = 512


@dataclass(frozen=True)
class Picture:
    """A drawn picture and the boxes [N, 4] xyxy px of everyone in it."""

    image: Image.Image
    boxes: np.ndarray


@dataclass(frozen=True)
class TrueBoxes:
    """Looks for people as a detector must, and then knows where they are."""

    detector: Callable[[Sequence[Image.Image], Sequence[int]], list[Boxes]]
    known: dict[int, np.ndarray]
    """Boxes by image id."""

    def __call__(self, images: Sequence[Image.Image], ids: Sequence[int]) -> list[Boxes]:
        """See TopDown.boxes."""
        self.detector(images, ids)
        return [(self.known[number], np.ones(len(self.known[number]))) for number in ids]


def drawn(people: int, number: int, skeleton: str) -> Picture:
    """Picture `number` of so many people."""
    params = SyntheticParams(
        skeleton=skeleton,  # type: ignore[arg-type]
        images=number + 1,
        width=SIDE,
        height=SIDE,
        people=(people, people),
        seed=17,
    )
    image, everyone = synthetic.draw(params, number)
    boxes = np.array([person["bbox"] for person in everyone], np.float32)
    boxes[:, 2:] += boxes[:, :2]
    return Picture(image, boxes)


def compare(
    models: dict[str, Pipeline], pictures: dict[int, list[Picture]], min_score: float
) -> dict[str, dict[int, dict[str, float]]]:
    """Median milliseconds of a picture and mean number of people found, by model and number of people."""
    first = next(iter(pictures.values()))[0]
    for model in models.values():
        model([first.image], [0])
    times: dict[tuple[str, int], list[float]] = {}
    found: dict[tuple[str, int], list[int]] = {}
    everything = [(people, number) for people, several in pictures.items() for number in range(len(several))]
    for people, number in track(everything, "pictures", total=len(everything)):
        for name, model in models.items():
            began = time.process_time()
            answer = model([pictures[people][number].image], [1000 * people + number])
            times.setdefault((name, people), []).append(time.process_time() - began)
            found.setdefault((name, people), []).append(int((answer.person_scores >= min_score).sum()))
    return {
        name: {
            people: {
                "ms": round(1000 * statistics.median(times[name, people]), 1),
                "found": round(statistics.mean(found[name, people]), 1),
            }
            for people in pictures
        }
        for name in models
    }


def plot(result: dict[str, dict[int, dict[str, float]]], top_down: set[str], path: Path) -> None:
    """Milliseconds over people, dashed where boxes come first."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in result.items():
        style = "o--" if name in top_down else "o-"
        axes.plot(list(points), [point["ms"] for point in points.values()], style, label=name)
    axes.set(xlabel="people in the picture", ylabel="ms a picture, one core", ylim=(0, None), xticks=PEOPLE)
    axes.grid(alpha=0.3)
    axes.legend(title="boxes first: dashed")
    figure.savefig(path, dpi=120)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--detector", required=True, type=Path)
    parser.add_argument("--pictures", type=int, default=5, help="of each number of people")
    parser.add_argument("--min-score", type=float, default=0.3, help="of boxes and people that count")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before ONNX Runtime counts cores
    torch.set_num_threads(1)
    models: dict[str, Pipeline] = {}
    known: dict[int, np.ndarray] = {0: np.array([[0, 0, SIDE, SIDE]], np.float32)}
    for folder in arguments.models:
        name, scene = system_of(folder)
        pipeline = choose(folder, None if scene else arguments.detector, min_score=arguments.min_score)
        if name in models:
            parser.error(f"{folder} is a second {name}; give one model of each system")
        if isinstance(pipeline, TopDown):
            pipeline = replace(pipeline, boxes=TrueBoxes(pipeline.boxes, known))
        models[name] = pipeline
    skeletons = {model.model.skeleton.name for model in models.values()}
    if len(skeletons) > 1:
        parser.error(f"the models are of several skeletons: {', '.join(sorted(skeletons))}")
    pictures = {count: [drawn(count, n, *skeletons) for n in range(arguments.pictures)] for count in PEOPLE}
    for people, several in pictures.items():
        known.update({1000 * people + number: picture.boxes for number, picture in enumerate(several)})
    result = compare(models, pictures, arguments.min_score)
    top_down = {name for name, model in models.items() if isinstance(model, TopDown)}
    for name, points in result.items():
        say(f"{name:<18}" + " ".join(f"{people}: {point['ms']:.0f} ms" for people, point in points.items()))
    if arguments.plot:
        plot(result, top_down, arguments.plot)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
