"""Preparation: audit, split, crop. The same archive and parameters always give the same bytes.

The folder holds train|val|test.json (COCO keypoints), the shards of people and of scenes, audit.json, audit.png,
dataset.json and SHA256SUMS.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from pose.config import CropParams, DatasetParams, SceneParams, SplitParams
from pose.data import crops
from pose.data.check import Audit, Person, audit
from pose.data.check_images import cores
from pose.data.scene_rows import scene_rows
from pose.data.scenes import write_scenes
from pose.data.shards import SPLITS, DatasetInfo, Row, Split, seal, write_shards
from pose.data.sources import Source, open_source
from pose.data.truth import write_truth
from pose.errors import DataError
from pose.progress import say, track
from pose.skeleton import Skeleton

CHUNK = 256
"""Images whose crops are held in memory at a time."""


def prepare(name: str, params: DatasetParams, raw: Path, cache: Path, out: Path) -> None:
    """Writes the prepared dataset to `out`, replacing what was there only once all of it is written.

    Raises DataError where the audit finds an error (its report then lies in <cache>/<name>-audit), a split is empty
    or the train split never labels a joint.
    """
    source = open_source(name, params, raw, cache)
    audited = audit(source, params.check)
    _stop_on_errors(audited, source, cache / f"{name}-audit")
    sides = split_images(audited, params.split, source.sides)
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=out.parent))
    try:
        _write(name, params, source, audited, sides, building)
        building.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def split_images(audited: Audit, shares: SplitParams, given: Mapping[int, str] | None = None) -> dict[int, str]:
    """The split of each usable image by its id, decided by the hash of its bytes alone.

    Adding images moves none of the others, but for near-duplicates, which follow the one with the lowest id. Images
    that `given` names are in the split it says; near-duplicates of theirs that it does not name are in none.
    """
    given = given or {}
    leader = {member: group[0] for group in audited.groups for member in group}
    taken = {leader[number] for number in given if number in leader}
    sides = {}
    for image in audited.images:
        number = image["id"]
        if number in given:
            sides[number] = given[number]
        elif leader.get(number) not in taken or number not in leader:
            position = int(audited.sha256[leader.get(number, number)][:16], 16) / 2**64
            sides[number] = (
                "train" if position < shares.train else "val" if position < shares.train + shares.val else "test"
            )
    return sides


def _stop_on_errors(audited: Audit, source: Source, report: Path) -> None:
    try:
        audited.raise_if_failed()
    except DataError as error:
        report.mkdir(parents=True, exist_ok=True)
        _write_audit(audited, source, report)
        raise DataError(f"{error} All findings: {report / 'audit.json'}, the worst in pictures: audit.png.") from None


def _write_audit(audited: Audit, source: Source, folder: Path) -> None:
    (folder / "audit.json").write_text(json.dumps(audited.to_json(), indent=1, allow_nan=False) + "\n")
    audited.contact_sheet(source, folder / "audit.png")


def _write(
    name: str, params: DatasetParams, source: Source, audited: Audit, sides: dict[int, str], folder: Path
) -> None:
    _write_audit(audited, source, folder)
    by_id = {image["id"]: image for image in audited.images}
    counts = {}
    for split in SPLITS:
        images = [image for image in audited.images if sides.get(image["id"]) == split]
        people = [person for person in audited.people if sides.get(person.image_id) == split]
        if not people:
            raise DataError(
                f"The {split} split of {name} is empty: {len(by_id)} usable images with {len(audited.people)} people "
                f"are too few for its share of {getattr(params.split, split):g}. Use more images or another share."
            )
        write_truth(source, audited, images, folder / f"{split}.json")
        rows = _rows(source.root, by_id, people, params.crop, f"cutting {split}")
        counts[split] = write_shards(rows, folder, split, params.shard_rows, source.skeleton, params.crop)
        if params.scene is not None:
            _write_scenes(params.scene, source, audited, images, split, params.shard_rows, folder)
    info = _info(name, params.crop, source.skeleton, audited, Split.open(folder, "train"), sides, counts)
    info.save(folder)
    seal(folder)
    said = ", ".join(f"{counts[split]} {split}" for split in SPLITS)
    apart = len(by_id) - len(sides)
    leaks = f", {apart} images left out as near-duplicates of another split's" if apart else ""
    say(
        f"{name}: {said}, {len(audited.left_out)} people left out{leaks}, "
        f"{sum(info.findings.values())} findings in audit.json"
    )


def _write_scenes(
    params: SceneParams, source: Source, audited: Audit, images: list[dict], split: str, shard_rows: int, folder: Path
) -> None:
    """Images without anybody are measured on, but teach little for what they cost: the train split goes without."""
    if split == "train":
        inhabited = {person.image_id for person in audited.people} | {region.image_id for region in audited.regions}
        images = [image for image in images if image["id"] in inhabited]
    rows = scene_rows(source.root, audited, images, source.skeleton, params, f"storing {split} scenes")
    write_scenes(rows, folder, split, shard_rows, source.skeleton, params.size)


def _rows(root: Path, images: dict[int, dict], people: list[Person], crop: CropParams, what: str) -> Iterator[Row]:
    """The people's rows in their order; each image is decoded once, on all cores."""
    by_image = [(images[number], list(group)) for number, group in groupby(people, key=lambda p: p.image_id)]

    def cut(job: tuple[dict, list[Person]]) -> list[Row]:
        return _cut_image(root, *job, crop)

    with ThreadPoolExecutor(cores()) as pool:
        starts = range(0, len(by_image), CHUNK)
        cuts = (rows for start in starts for rows in pool.map(cut, by_image[start : start + CHUNK]))
        for rows in track(cuts, what, total=len(by_image)):
            yield from rows


def _cut_image(root: Path, record: dict, people: list[Person], crop: CropParams) -> list[Row]:
    image = Image.open(root / record["file_name"]).convert("RGB")
    rows = []
    for person in people:
        affine = crops.crop_affine(crop, person.box, image.size)
        buffer = io.BytesIO()
        crops.extract(image, affine, crop.size).save(buffer, "JPEG", quality=crop.quality)
        rows.append(
            Row(
                jpeg=buffer.getvalue(),
                file_name=record["file_name"],
                image_id=person.image_id,
                annotation_id=person.annotation_id,
                image_size=image.size,
                box=person.box,
                keypoints=person.keypoints[:, :2],
                visibility=person.keypoints[:, 2],
                to_crop=affine,
            )
        )
    return rows


def _info(
    name: str,
    crop: CropParams,
    skeleton: Skeleton,
    audited: Audit,
    train: Split,
    sides: dict[int, str],
    counts: dict[str, int],
) -> DatasetInfo:
    labelled = train.labelled.sum(axis=0)
    if not labelled.all():
        missing = ", ".join(joint for joint, count in zip(skeleton.joints, labelled, strict=True) if not count)
        raise DataError(f"No image of the train split of {name} labels {missing}; nothing could learn it.")

    def mean(points: np.ndarray) -> np.ndarray:
        return np.where(train.labelled[..., None], points, 0).sum(axis=0, dtype=np.float64) / labelled[:, None]

    return DatasetInfo(
        name=name,
        skeleton=skeleton.name,
        crop=crop,
        counts=counts,
        images={split: sum(side == split for side in sides.values()) for split in SPLITS},
        excluded=len(audited.left_out),
        findings=audited.counts(),
        mean_pose=mean(train.keypoints / train.image_sizes[:, None]),
        mean_pose_crop=mean(train.crop_keypoints),
        presence_rate=train.presence.mean(axis=0, dtype=np.float64),
    )
