"""Picture files: finding them, reading them, and predicting many with one result or one error for each."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pose.errors import ConfigError, DataError
from pose.inference.draw import overlay
from pose.inference.predictor import Predictor

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""What is taken from a folder. A file named outright is tried whatever its suffix."""

OVERLAY_SUFFIX = ".pose.jpg"
"""What an overlay's name adds to its picture's: a.png and a.jpg keep one each."""


@dataclass(frozen=True)
class Predicted:
    """One picture with its people."""

    path: Path
    overlay: Image.Image
    results: list[dict]
    """COCO results, each with the picture's `file_name`."""


def find(patterns: Sequence[str]) -> list[Path]:
    """The pictures that files, folders (with their subfolders) and globs name, in that order, each once.

    Sorted within a folder or glob, and without the overlays of an earlier run, which only their outright name brings
    in. Raises ConfigError where one of the patterns names no picture.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_file():
            files = [path]
        else:
            candidates = path.rglob("*") if path.is_dir() else _expand(pattern)
            files = sorted(file for file in candidates if _is_picture(file))
        if not files:
            raise ConfigError(
                f"{pattern!r} names no picture: expected a file, a folder with {', '.join(SUFFIXES)} files, or a glob "
                "such as 'photos/**/*.jpg'"
            )
        found.update(dict.fromkeys(files))
    return list(found)


def read(path: Path) -> Image.Image:
    """The picture as RGB, turned upright where its EXIF says so. Raises DataError naming the file."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        raise DataError(f"{path} is not a picture in a known format") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def predict(predictor: Predictor, files: Sequence[Path], batch: int) -> Iterator[Predicted | DataError]:
    """One outcome per file, in order: an unreadable one is an error among the others' results.

    A picture's image_id is its place among `files`, from 1.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), batch):
            paths = files[start : start + batch]
            read_ones = list(pool.map(_read_or_error, paths))
            images = [image for image in read_ones if isinstance(image, Image.Image)]
            people = predictor.predict(images)
            own = [people.select(np.array([n])) for n in range(len(images))]
            drawn = pool.map(overlay, images, own, repeat(predictor.skeleton))
            results = iter(zip(people.to_coco_results(), drawn, strict=True))
            for place, (path, image) in enumerate(zip(paths, read_ones, strict=True), start=start + 1):
                if isinstance(image, DataError):
                    yield image
                else:
                    result, picture = next(results)
                    yield Predicted(path, picture, [{**result, "image_id": place, "file_name": str(path)}])


def _expand(pattern: str) -> list[Path]:
    # Path.glob takes relative patterns only; a user may well write an absolute one.
    return [Path(name) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207


def _read_or_error(path: Path) -> Image.Image | DataError:
    try:
        return read(path)
    except DataError as error:
        return error


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.endswith(OVERLAY_SUFFIX) and path.is_file()
