"""`pose predict`: a model on pictures, videos and cameras."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pose.commands.options import Json, Profile, Set, model_folder, require_no_systems

if TYPE_CHECKING:
    from PIL.Image import Image

    from pose.data.detections import Detections
    from pose.errors import DataError
    from pose.inference.frames import Source
    from pose.inference.pipelines import Pipeline
    from pose.people import People

MIN_SCORE = 0.3
"""Of a box that a detector finds, or a person that a scene model finds: below it most are none."""
RESULTS = "predictions.json"
MANY = 25 * 3600 * 24
"""Frames taken for possible where a video does not say how many it has: a day's."""


def predict(
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="models:/NAME@ALIAS, models:/NAME/VERSION, a bundle or a training folder."),
    ],
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="PATH...", help="Pictures, videos, folders or quoted globs.")
    ] = None,
    camera: Annotated[int | None, typer.Option(min=0, help="Number of a camera; Ctrl-C ends it.")] = None,
    detector: Annotated[
        str | None, typer.Option(help="A person detector, named as --model is: finds the boxes to look into.")
    ] = None,
    boxes: Annotated[
        Path | None, typer.Option(help="Person detections to look into: a COCO results list, by image id.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("predictions"),
    min_score: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Boxes that --detector scores lower are not looked into; people a scene model scores lower not drawn.",
        ),
    ] = MIN_SCORE,
    frames: Annotated[int | None, typer.Option(min=1, help="Stop after this many pictures and video frames.")] = None,
    maps: Annotated[bool, typer.Option("--maps", help="Draw the network's heatmaps under the people.")] = False,
    steps: Annotated[
        bool, typer.Option("--steps", help="Beside each overlay, how OpenPose came to it: maps, fields, links, people.")
    ] = False,
    draw_boxes: Annotated[bool, typer.Option("--draw-boxes", help="Draw each person's box.")] = False,
    draw_scores: Annotated[bool, typer.Option("--draw-scores", help="Write each person's score.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Pictures or frames held in memory together.")] = 8,
    profile: Profile = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Find people in pictures and videos: overlays and predictions.json (COCO results) in the --out folder.

    A model of whole images with one person finds that one. A model of boxes looks into those of --detector or --boxes,
    else takes the whole picture as one. A scene model (Keypoint R-CNN, or a person detector by itself) finds everyone.

    Left limbs are blue, right ones orange, what is unsure faint; predictions.json holds everyone found and every joint,
    whatever the score. Pictures all named by numbers, as COCO's are, have these as image ids; otherwise they are
    counted from 1. What cannot be read is named at the end with exit code 3; the rest is done all the same.

    Example: `pose predict --model models:/pose-lspet@champion photos 'more/*.jpg' dance.mp4`
    """
    from pose.errors import DataError
    from pose.inference.choice import choose
    from pose.inference.frames import find
    from pose.inference.pipelines import EndToEnd

    if (camera is None) == (not inputs):
        raise typer.BadParameter("expected paths of pictures or videos, or --camera, and not both")
    if detector and boxes:
        raise typer.BadParameter("--detector and --boxes both say where people are; give one of them")
    sources = _sources(find(inputs) if inputs else [], camera)
    require_no_systems(set_ or [])
    folder = model_folder(model, profile, set_)
    look_for = model_folder(detector, profile, set_) if detector else None
    pipeline = choose(folder, look_for, _given(boxes, sources) if boxes else None, min_score)
    under = _maps_under(folder, pipeline) if maps else None
    drawing: dict[str, Any] = {
        "under": under,
        "boxes": draw_boxes or not pipeline.model.finds_joints,
        "scores": draw_scores,
    }
    if isinstance(pipeline, EndToEnd):
        drawing["least"] = min_score
    failures = _run(pipeline, sources, out, batch, frames, drawing, _steps_of(folder) if steps else None)
    if json:
        with (out / RESULTS).open() as file:
            shutil.copyfileobj(file, sys.stdout)
    if failures:
        listed = "; ".join(str(failure) for failure in failures)
        raise DataError(f"{len(failures)} of {len(sources)} inputs could not be read whole, the rest is done: {listed}")


def _sources(files: list[Path], camera: int | None) -> list[Source]:
    from pose.inference.frames import PictureFile, is_video
    from pose.inference.video import Camera, Video

    if camera is not None:
        return [Camera(camera)]
    return [Video(file) if is_video(file) else PictureFile(file) for file in files]


def _maps_under(folder: Path, pipeline: Pipeline) -> Callable[[Image, People], Image]:
    from pose.inference import paf_view
    from pose.inference.choice import system_of
    from pose.inference.maps import looker, scene_seen, seen
    from pose.inference.predictor import Predictor

    if isinstance(pipeline.model, Predictor):
        return partial(seen, pipeline.model, looker(folder))
    return paf_view.seen(folder) if system_of(folder)[0] == "openpose" else scene_seen(folder)


def _steps_of(folder: Path) -> Callable[[Image], Image]:
    from pose.inference import paf_view

    return paf_view.sheets(folder)


def _given(path: Path, sources: list[Source]) -> Detections:
    """The boxes of a detection file. Raises DataError for a file that is none, or is for other pictures."""
    from pose.data.detections import read
    from pose.errors import ConfigError
    from pose.inference.run import numbered
    from pose.inference.video import Camera

    if any(isinstance(source, Camera) for source in sources):
        raise ConfigError("--boxes: nobody knows yet what the camera will see; give a --detector instead")
    return read(path, numbered(sources)[: _total(sources, None) or MANY])


def _run(
    pipeline: Pipeline,
    sources: list[Source],
    out: Path,
    batch: int,
    limit: int | None,
    drawing: dict[str, Any],
    steps: Callable[[Image], Image] | None,
) -> list[DataError]:
    """Everything that is asked for, written to `out`; returns what could not be read."""
    from pose.errors import DataError
    from pose.inference.frames import PICTURE_STEPS, VIDEO_STEPS
    from pose.inference.results import Overlays, ResultsFile
    from pose.inference.run import entries, run
    from pose.progress import say, track

    failures: list[DataError] = []
    done = 0
    sheets = Overlays(sources, out, (PICTURE_STEPS, VIDEO_STEPS))
    with ResultsFile(out / RESULTS) as results, Overlays(sources, out) as overlays, sheets:
        outcomes = islice(run(pipeline, sources, batch, **drawing), limit)
        try:
            for outcome in track(outcomes, "frames", total=_total(sources, limit)):
                if isinstance(outcome, DataError):
                    failures.append(outcome)
                    continue
                overlays.add(outcome.source, outcome.frame, outcome.drawn)
                if steps:
                    sheets.add(outcome.source, outcome.frame, steps(outcome.frame.image))
                results.add(entries(outcome, pipeline.model.finds_joints))
                done += 1
        except KeyboardInterrupt:
            say("interrupted; what was done until now is kept")
    found = f"{results.entries} people in {done} pictures"
    which = f"those scored {drawing['least']:g} and more " if "least" in drawing else ""
    say(f"{pipeline.model.name}: {found}, {which}drawn in {out}, numbers in {out / RESULTS}")
    return failures


def _total(sources: list[Source], limit: int | None) -> int | None:
    """Frames to come, where all sources say how many they have."""
    counts = [source.count for source in sources]
    known = None if None in counts else sum(count for count in counts if count)
    return limit if known is None else min(known, limit or known)
