"""Trainings side by side: a validation metric by epoch, as JSON and, with --plot, as a picture.

    python -m benchmarks.curves FOLDER FOLDER [--metric pck_image_12] [--plot docs/losses.png]

Each FOLDER is a training's (runs/training/…); its curve is named after the recipe's loss, where the recipe has one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from pose.training import TrainingSpec


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--metric", default="pck_image_12", help="of validation, as history.jsonl has it")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    curves = {name(folder): curve(folder, arguments.metric) for folder in arguments.folders}
    print(json.dumps(curves, indent=1))
    if arguments.plot is not None:
        draw(curves, arguments.metric, arguments.plot)


def name(folder: Path) -> str:
    """The system and how its recipe differs from others by the loss."""
    spec = TrainingSpec.load(folder / "spec.json")
    loss = getattr(spec.recipe, "loss", spec.system_params.recipe)
    return f"{spec.system}, {loss.replace('_', ' ')}"


def curve(folder: Path, metric: str) -> list[float]:
    """One number per epoch."""
    lines = (folder / "history.jsonl").read_text().splitlines()
    return [round(json.loads(line)["val"][metric], 4) for line in lines]


def draw(curves: dict[str, list[float]], metric: str, path: Path) -> None:
    """Epochs across, the metric up from nothing."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for label, values in curves.items():
        axes.plot(range(1, len(values) + 1), values, marker="o", label=label)
    axes.set(
        xlabel="epoch",
        ylabel=f"validation {metric}",
        ylim=(0, 1.1 * max(map(max, curves.values()))),
        xticks=range(1, max(map(len, curves.values())) + 1),
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
