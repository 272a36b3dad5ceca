"""Frames: what a model is shown, one after the other and never all at once, from picture files, videos or a camera."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageOps, UnidentifiedImageError

from pose.errors import ConfigError, DataError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
"""What is taken from a folder. A file named outright is tried as a picture whatever its suffix, unless a video's."""

PICTURE_OVERLAY = ".pose.jpg"
VIDEO_OVERLAY = ".pose.mp4"
"""What an overlay's name adds to its original's: a.png and a.jpg keep one each."""

PICTURE_STEPS = ".pose-steps.jpg"
VIDEO_STEPS = ".pose-steps.mp4"
"""The same of the steps that led to it."""

READ_TOGETHER = 8
"""Picture files decoded ahead, side by side."""


@dataclass(frozen=True)
class Frame:
    """One picture, or one frame of a video."""

    image: Image.Image
    """RGB, upright."""
    source: str
    """The file it is from, or the camera."""
    number: int = 0
    """Within a video, from 0."""
    seconds: float = 0.0
    """Within a video, from its beginning."""


class Source(Protocol):
    """Something that gives frames: PictureFile, pose.inference.video.Video or Camera."""

    @property
    def name(self) -> str:
        """As results name it."""

    @property
    def count(self) -> int | None:
        """How many frames it says to have, or None where nothing says so."""

    def frames(self) -> Iterator[Frame | DataError]:
        """Its frames in order; an error where it breaks off, with those before it already given."""


@dataclass(frozen=True)
class PictureFile:
    """A file with one picture."""

    path: Path
    count: int | None = 1

    @property
    def name(self) -> str:
        """See Source."""
        return str(self.path)

    def frames(self) -> Iterator[Frame | DataError]:
        """See Source."""
        try:
            yield Frame(read(self.path), self.name)
        except DataError as error:
            yield error


def find(patterns: Sequence[str]) -> list[Path]:
    """The pictures and videos that files, folders (with their subfolders) and globs name, in that order, each once.

    Sorted within a folder or glob, and without what an earlier run drew, which only its outright name brings in.
    Raises ConfigError where one of the patterns names nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_file():
            files = [path]
        else:
            candidates = path.rglob("*") if path.is_dir() else _expand(pattern)
            files = sorted(file for file in candidates if _is_wanted(file))
        if not files:
            raise ConfigError(
                f"{pattern!r} names no picture and no video: expected a file, a folder with "
                f"{', '.join(SUFFIXES + VIDEO_SUFFIXES)} files, or a glob such as 'photos/**/*.jpg'"
            )
        found.update(dict.fromkeys(files))
    return list(found)


def is_video(path: Path) -> bool:
    """Whether a file is taken for a video, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def read(path: Path) -> Image.Image:
    """The picture as RGB, turned upright where its EXIF says so. Raises DataError naming the file."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        raise DataError(f"{path} is not a picture in a known format") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def every_frame(sources: Sequence[Source]) -> Iterator[tuple[Source, Frame | DataError]]:
    """All frames of all sources in order, each with its source; pictures are decoded a few at a time, videos lazily."""
    remaining = iter(sources)
    with ThreadPoolExecutor(READ_TOGETHER) as pool:
        while group := list(islice(remaining, READ_TOGETHER)):
            ahead = {id(s): pool.submit(list, s.frames()) for s in group if isinstance(s, PictureFile)}
            for source in group:
                frames = ahead[id(source)].result() if id(source) in ahead else source.frames()
                for frame in frames:
                    yield source, frame


def _expand(pattern: str) -> list[Path]:
    # Path.glob takes relative patterns only; a user may well write an absolute one.
    return [Path(name) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207


def _is_wanted(path: Path) -> bool:
    suffixes = SUFFIXES + VIDEO_SUFFIXES
    own = path.name.endswith((PICTURE_OVERLAY, VIDEO_OVERLAY, PICTURE_STEPS, VIDEO_STEPS))
    return path.suffix.lower() in suffixes and not own and path.is_file()
