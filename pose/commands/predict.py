"""`pose predict`: a model on pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from pose.commands.options import Json, Profile, Set, model_folder
from pose.commands.output import print_json


def predict(
    pictures: Annotated[list[str], typer.Argument(metavar="PATH...", help="Files, folders or quoted globs.")],
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="models:/NAME@ALIAS, models:/NAME/VERSION, a bundle or a training folder."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("predictions"),
    batch: Annotated[int, typer.Option(min=1, help="Pictures that go through the network together.")] = 8,
    profile: Profile = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Find the person in each picture: overlay pictures and predictions.json (COCO results) in the --out folder.

    Left limbs are blue, right ones orange, joints that are probably hidden faint. A picture that cannot be read is
    named at the end with exit code 3; the others are done all the same. The model `pose-DATASET` is the best system
    of that dataset, whichever it is. Example: `pose predict --model models:/pose-lspet@champion photos 'more/*.jpg'`
    """
    from pose.errors import DataError
    from pose.inference import pictures as files
    from pose.inference.predictor import Predictor
    from pose.progress import say, track

    found = files.find(pictures)
    targets = _targets(found, out)
    predictor = Predictor.load(model_folder(model, profile, set_))
    results: list[dict] = []
    failures: list[DataError] = []
    outcomes = files.predict(predictor, found, batch)
    for outcome in track(outcomes, "pictures", total=len(found)):
        if isinstance(outcome, DataError):
            failures.append(outcome)
            continue
        target = targets[outcome.path]
        target.parent.mkdir(parents=True, exist_ok=True)
        outcome.overlay.save(target, quality=92)
        results += outcome.results
    _write(results, out / "predictions.json")
    if json:
        print_json(results)
    say(f"{predictor.name}: {len(results)} of {len(found)} pictures in {out}, numbers in {out / 'predictions.json'}")
    if failures:
        listed = "; ".join(str(failure) for failure in failures)
        raise DataError(f"{len(failures)} of {len(found)} pictures could not be read, the others are done: {listed}")


def _targets(files: list[Path], out: Path) -> dict[Path, Path]:
    """Where each overlay goes: below `out` as its picture lies below the folder that all have in common."""
    from pose.inference.pictures import OVERLAY_SUFFIX

    resolved = {file: file.resolve() for file in files}
    common = Path(os.path.commonpath([path.parent for path in resolved.values()]))
    return {file: out / f"{path.relative_to(common)}{OVERLAY_SUFFIX}" for file, path in resolved.items()}


def _write(results: list[dict], path: Path) -> None:
    import json

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".json.part")
    partial.write_text(json.dumps(results) + "\n")
    partial.replace(path)
