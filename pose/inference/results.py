"""What prediction writes: COCO results as they come, overlay pictures and annotated videos."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from PIL import Image

from pose.inference.frames import PICTURE_OVERLAY, VIDEO_OVERLAY, Frame, PictureFile, Source
from pose.inference.video import Video, VideoWriter

JPEG_QUALITY = 92


class ResultsFile:
    """A JSON list that grows on disk, one entry a line, and is valid once closed, whatever happened in between."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = path.with_name(f"{path.name}.part")
        self._file = self._partial.open("w")

    def __enter__(self) -> ResultsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._file.write("\n]\n" if self.entries else "[]\n")
        self._file.close()
        self._partial.replace(self.path)

    def add(self, entries: Iterable[dict]) -> None:
        """Appends entries."""
        for entry in entries:
            self._file.write(("[\n" if not self.entries else ",\n") + json.dumps(entry))
            self.entries += 1


class Overlays:
    """Overlays below one folder as their originals lie below the folder that all have in common.

    endings: what names add to those of pictures, and of all else.
    """

    def __init__(
        self, sources: list[Source], out: Path, endings: tuple[str, str] = (PICTURE_OVERLAY, VIDEO_OVERLAY)
    ) -> None:
        files: dict[Source, Path] = {s: s.path.resolve() for s in sources if isinstance(s, PictureFile | Video)}
        common = Path(os.path.commonpath([path.parent for path in files.values()])) if files else Path()
        names = {source: str(path.relative_to(common)) for source, path in files.items()}
        self._out = out
        self._of_picture, self._of_video = endings
        self._names = {source: names.get(source, source.name) for source in sources}
        self._video: tuple[Source, VideoWriter] | None = None

    def __enter__(self) -> Overlays:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._finish()

    def path(self, source: Source) -> Path:
        """Where a source's overlay goes."""
        ending = self._of_picture if isinstance(source, PictureFile) else self._of_video
        return self._out / f"{self._names[source]}{ending}"

    def add(self, source: Source, frame: Frame, drawn: Image.Image) -> None:
        """One drawn frame; frames of a source come together and in order."""
        path = self.path(source)
        if isinstance(source, PictureFile):
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn.save(path, quality=JPEG_QUALITY)
            return
        if self._video is None or self._video[0] != source:
            self._finish()
            self._video = (source, VideoWriter(path))
        self._video[1].write(drawn, frame.seconds)

    def _finish(self) -> None:
        if self._video is not None:
            (_, writer), self._video = self._video, None
            writer.close()
