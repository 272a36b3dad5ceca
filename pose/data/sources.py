"""Datasets as one thing: a folder of images and COCO keypoints, whatever archive they came from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pose.config import DatasetParams
from pose.data import archives, lsp, synthetic
from pose.digests import file_sha256
from pose.errors import DataError
from pose.skeleton import LSP14, Skeleton, skeleton_named


@dataclass(frozen=True)
class Source:
    """An unpacked dataset."""

    root: Path
    coco: dict
    """COCO keypoints; file_name is relative to root."""
    skeleton: Skeleton


def fetch_dataset(name: str, params: DatasetParams, raw: Path) -> None:
    """Puts the dataset's one archive into `raw`, the dataset's own folder: downloaded, or drawn as <name>.zip.

    An archive that is there and right is left alone. Raises DataError.
    """
    if params.archive is not None:
        archives.fetch(params.archive, raw)
    elif params.synthetic is not None:
        target = raw / f"{name}.zip"
        if not synthetic.is_drawn(params.synthetic, target):
            synthetic.write_archive(params.synthetic, target)


def open_source(name: str, params: DatasetParams, raw: Path, cache: Path) -> Source:
    """Unpacks the archive in `raw` to <cache>/<name>-<first 8 of its sha256> unless it is there, and reads it.

    Raises DataError if the archive was not fetched or is not what it should be.
    """
    archive = raw / (params.archive.file if params.archive is not None else f"{name}.zip")
    if not archive.is_file():
        raise DataError(f"{archive} is not there. Fetch it first: pose data fetch {name}")
    root = archives.unpack(archive, cache / f"{name}-{file_sha256(archive)[:8]}")
    if params.synthetic is not None:
        coco = json.loads((root / synthetic.ANNOTATIONS).read_text())
        return Source(root, coco, skeleton_named(params.synthetic.skeleton))
    read = {"lspet": lsp.read_lspet, "lsp": lsp.read_lsp}[params.kind]
    return Source(root, read(root), LSP14)
