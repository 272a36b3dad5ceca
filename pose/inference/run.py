"""A pipeline over any number of frames: some at a time, results and drawings in order, errors in their place."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image

from pose.errors import DataError
from pose.inference.draw import overlay
from pose.inference.frames import Frame, PictureFile, Source, every_frame
from pose.inference.pipelines import Pipeline
from pose.people import People

ENDLESS = 2**31
"""More frames than any video has."""


@dataclass(frozen=True)
class Outcome:
    """One frame with its people."""

    source: Source
    frame: Frame
    image_id: int
    people: People
    """Everyone found, drawn or not."""
    drawn: Image.Image


def run(
    pipeline: Pipeline,
    sources: Sequence[Source],
    batch: int,
    *,
    under: Callable[[Image.Image, People], Image.Image] | None = None,
    boxes: bool = False,
    scores: bool = False,
    least: float = -math.inf,
) -> Iterator[Outcome | DataError]:
    """Every frame's outcome in order, an unreadable one's error among them; no more than `batch` are in memory.

    under: makes of the picture and its people what these are drawn on. boxes, scores: what is drawn besides the
    limbs, see pose.inference.draw.overlay. least: people with a lower score are not drawn.
    """

    def draw(image: Image.Image, people: People) -> Image.Image:
        likely = people.select(people.person_scores >= least) if least > -math.inf else people
        base = image if under is None else under(image, likely)
        return overlay(base, likely, pipeline.model.skeleton, boxes=boxes, scores=scores)

    frames = zip(numbered(sources), every_frame(sources), strict=False)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while group := list(islice(frames, batch)):
            good = [(n, source, frame) for n, (source, frame) in group if isinstance(frame, Frame)]
            people = _each(pipeline, [frame.image for _, _, frame in good], [n for n, _, _ in good])
            drawn = pool.map(draw, [frame.image for _, _, frame in good], people)
            done = iter(zip(good, people, drawn, strict=True))
            for _, (_, frame) in group:
                if isinstance(frame, DataError):
                    yield frame
                else:
                    (image_id, source, own), found, picture = next(done)
                    yield Outcome(source, own, image_id, found, picture)


def numbered(sources: Sequence[Source]) -> Sequence[int]:
    """Image ids in the order of frames: the numbers that all files are named by, as COCO's are, else from 1 on."""
    stems = [source.path.stem for source in sources if isinstance(source, PictureFile)]
    ids = [int(stem) for stem in stems if stem.isascii() and stem.isdigit()]
    return ids if len(ids) == len(sources) == len(set(ids)) else range(1, ENDLESS)


def entries(outcome: Outcome, finds_joints: bool) -> list[dict]:
    """COCO results of one frame, each naming its file, and of a video the frame and its time.

    Without joints they are COCO detections.
    """
    named: dict[str, str | int | float] = {"file_name": outcome.frame.source}
    if not isinstance(outcome.source, PictureFile):
        named |= {"frame": outcome.frame.number, "seconds": round(outcome.frame.seconds, 4)}
    results = outcome.people.to_coco_results()
    if not finds_joints:
        results = [
            {"image_id": r["image_id"], "category_id": r["category_id"], "bbox": r["box"], "score": r["score"]}
            for r in results
        ]
    return [result | named for result in results]


def _each(pipeline: Pipeline, images: list[Image.Image], ids: list[int]) -> list[People]:
    """The people of each picture."""
    if not images:
        return []
    people = pipeline(images, ids)
    return [people.select(np.flatnonzero(people.image_ids == image_id)) for image_id in ids]
