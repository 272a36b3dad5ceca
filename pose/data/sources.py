"""Datasets as one thing: a folder of images and COCO keypoints, whatever archives they came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pose.config import DatasetParams
from pose.data import archives, coco, collage, lsp, synthetic
from pose.digests import file_sha256
from pose.errors import DataError
from pose.skeleton import COCO17, LSP14, Skeleton, skeleton_named


@dataclass(frozen=True)
class Source:
    """An unpacked dataset."""

    root: Path
    coco: dict
    """COCO keypoints; file_name is relative to root."""
    skeleton: Skeleton
    sides: Mapping[int, str] = field(default_factory=dict)
    """The split of those images, by id, whose dataset says it."""


@dataclass(frozen=True)
class Base:
    """The dataset that another one is made of."""

    params: DatasetParams
    raw: Path
    prepared: Path


def fetch_dataset(
    name: str, params: DatasetParams, raw: Path, base: Base | None = None, cache: Path | None = None
) -> None:
    """Puts the dataset's archives into `raw`, the dataset's own folder: downloaded, or made as <name>.zip.

    A collage is made of `base`, which has to be prepared and is unpacked below `cache`.
    An archive that is there and right is left alone. Raises DataError.
    """
    for archive in params.archives:
        archives.fetch(archive, raw)
    target = raw / f"{name}.zip"
    if params.synthetic is not None and not synthetic.is_drawn(params.synthetic, target):
        synthetic.write_archive(params.synthetic, target)
    if params.collage is not None:
        if base is None or cache is None:
            raise ValueError(f"{name} is made of {params.collage.of}, which was not handed over")
        source = open_source(params.collage.of, base.params, base.raw, cache)
        collage.write_archive(params.collage, params.split, base.prepared, source.root, target)


def open_source(name: str, params: DatasetParams, raw: Path, cache: Path) -> Source:
    """Unpacks the archives in `raw` to <cache>/<name>-<first 8 of their sha256> unless they are there, and reads them.

    Raises DataError if an archive was not fetched or is not what it should be.
    """
    files = [raw / archive.file for archive in params.archives] or [raw / f"{name}.zip"]
    for file in files:
        if not file.is_file():
            raise DataError(f"{file} is not there. Fetch it first: pose data fetch {name}")
    root = archives.unpack(files, cache / f"{name}-{_digest(files)[:8]}")
    if params.synthetic is not None:
        return Source(root, _annotations(root), skeleton_named(params.synthetic.skeleton))
    if params.kind == "collage":
        read = _annotations(root)
        return Source(root, read, LSP14, {image["id"]: image["split"] for image in read["images"]})
    if params.kind == "coco":
        read = coco.read_coco(root)
        return Source(root, read, COCO17, coco.official_sides(read))
    return Source(root, {"lspet": lsp.read_lspet, "lsp": lsp.read_lsp}[params.kind](root), LSP14)


def _annotations(root: Path) -> dict:
    return json.loads((root / synthetic.ANNOTATIONS).read_text())


def _digest(files: list[Path]) -> str:
    """One archive's sha256, or that of several ones' sha256."""
    digests = [file_sha256(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
