"""How far two annotators agree: people of LSP-extended that were labelled twice, in two copies of one picture.

    python -m benchmarks.annotators [data/prepared/lspet]

Each label of a pair is measured as if it were a prediction of the other, with the metrics of an evaluation, so that
these figures stand beside the models' and say what can be reached at all. Positions count where both labelled the
joint. 95 % bootstrap intervals over the pairs; few pairs, so wide ones. JSON on stdout.
"""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from pose.data import duplicates
from pose.data.shards import Split, describe
from pose.metrics import bootstrap, pck, presence
from pose.people import People
from pose.skeleton import skeleton_named

CORRELATION, RESAMPLES, CONFIDENCE = 0.995, 2000, 0.95
EVEN = 0.5
"""A label is 0 or 1: any threshold between gives the same answer."""


def twins(directory: Path) -> tuple[People, People]:
    """The first and the second label of each pair, [P] people each, in squashed coordinates of the first's image."""
    splits = [Split.open(directory, name) for name in ("train", "val", "test")]
    thumbnails = [
        duplicates.thumbnail(Image.open(io.BytesIO(split.jpeg(row).tobytes())))
        for split in splits
        for row in range(len(split))
    ]
    everyone = People.concatenate([split.truth() for split in splits])
    pairs = duplicates.correlated_pairs(np.stack(thumbnails), CORRELATION)
    first, second = (everyone.select(np.array([pair[end] for pair in pairs])) for end in (0, 1))
    scale = (first.image_sizes / second.image_sizes)[:, None, :]
    return first, replace(
        second, keypoints=second.keypoints * scale, image_ids=first.image_ids, image_sizes=first.image_sizes
    )


def agreement(said: People, truth: People, directory: Path) -> dict[str, pck.Counts]:
    """The metrics' sums per pair, [P, C] each, of one label taken as a prediction of the other."""
    skeleton = skeleton_named(describe(directory).skeleton)
    both = replace(truth, scores=truth.scores * said.labelled)
    visible = presence.recalls(said, truth, np.full(skeleton.size, EVEN))
    always = replace(said, presence=np.ones_like(said.presence))
    absent = tuple(part[..., 1].sum(axis=1, keepdims=True) for part in visible)
    return {
        "presence_accuracy": pck.over_joints(presence.accuracy(said, truth)),
        "presence_balanced_accuracy": (visible[0].sum(axis=1), visible[1].sum(axis=1)),
        "absent_recognised": (absent[0], absent[1]),
        "always_visible_accuracy": pck.over_joints(presence.accuracy(always, truth)),
        "pck_image_12": pck.over_joints(pck.hits(pck.image_errors(said, both), pck.IMAGE_THRESHOLD)),
        "pck_torso_02": pck.over_joints(pck.hits(pck.torso_errors(said, both, skeleton), pck.TORSO_THRESHOLD)),
    }


def main() -> None:
    """Measures every pair in both directions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?", default=Path("data/prepared/lspet"))
    directory = parser.parse_args().directory
    first, second = twins(directory)
    there, back = agreement(first, second, directory), agreement(second, first, directory)
    found: dict[str, object] = {"pairs": len(first)}
    for name in there:
        sums = [a + b for a, b in zip(there[name], back[name], strict=True)]
        low, high = bootstrap.interval(*sums, RESAMPLES, CONFIDENCE)
        found[name] = {"value": round(bootstrap.value(*sums), 4), "low": round(low, 4), "high": round(high, 4)}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
