"""Videos and cameras, decoded frame by frame, and the annotated video that is written as it goes."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from pose.errors import ConfigError, DataError
from pose.inference.frames import Frame

SLACK_FRAMES = 2
SLACK_SECONDS = 0.15
"""A video that ends earlier than its header says by more than both of these has broken off; headers round."""
CLOCK = Fraction(1, 90_000)
"""Of annotated videos: fine enough for any frame rate, and for none in particular."""
QUALITY = "20"
"""x264's constant rate factor: limbs have no visible blocks around them."""


@dataclass(frozen=True)
class Video:
    """A video file. Frames come one at a time, upright, whatever their number."""

    path: Path

    @property
    def name(self) -> str:
        """See Source."""
        return str(self.path)

    @property
    def count(self) -> int | None:
        """Frames by the header, or by duration and rate; None for a file that does not open or does not say."""
        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    return None
                stream = container.streams.video[0]
                if stream.frames:
                    return stream.frames
                if container.duration and stream.average_rate:
                    return round(container.duration / av.time_base * stream.average_rate)
        except (av.error.FFmpegError, OSError):
            return None
        return None

    def frames(self) -> Iterator[Frame | DataError]:
        """See Source. What cannot be decoded is left out and named by an error at the end."""
        try:
            container = av.open(str(self.path))
        except (av.error.FFmpegError, OSError) as error:
            yield DataError(
                f"{self.path} is not a video that can be read: {_said(error)}. A recording that broke off before its "
                "index was written looks like this too."
            )
            return
        with container:
            if not container.streams.video:
                yield DataError(f"{self.path} has no pictures in it, only {_kinds(container)}")
                return
            yield from self._decoded(container, container.streams.video[0])

    def _decoded(self, container: InputContainer, stream: VideoStream) -> Iterator[Frame | DataError]:
        stream.thread_type = "AUTO"
        reading = _Reading(self.path)
        for packet in reading.packets(container):
            if packet.stream.index != stream.index:
                continue
            for frame in reading.pictures(packet):
                yield reading.made(frame, stream)
        if (error := reading.verdict(container, stream)) is not None:
            yield error


@dataclass
class _Reading:
    """How far the reading of one file has come, and what went wrong on the way."""

    path: Path
    done: int = 0
    damaged: int = 0
    reached: float = 0.0
    """Seconds on the file's clock up to which packets have come, whatever stream they are of."""
    broken: str = ""
    _start: float | None = field(default=None, repr=False)

    def packets(self, container: InputContainer) -> Iterator[Any]:
        try:
            for packet in container.demux():
                if packet.pts is not None and packet.time_base is not None:
                    end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                    self.reached = max(self.reached, end)
                yield packet
        except (av.error.FFmpegError, OSError) as error:
            self.broken = _said(error)

    def pictures(self, packet: Any) -> list[VideoFrame]:
        try:
            return packet.decode()
        except av.error.FFmpegError:
            self.damaged += 1
            return []

    def made(self, frame: VideoFrame, stream: VideoStream) -> Frame:
        moment = frame.time if frame.time is not None else self.done / float(stream.average_rate or 25)
        self._start = moment if self._start is None else self._start
        made = Frame(_upright(frame), str(self.path), self.done, max(0.0, moment - self._start))
        self.done += 1
        return made

    def verdict(self, container: InputContainer, stream: VideoStream) -> DataError | None:
        """What a reader must know who believes to have seen the whole video."""
        said = container.duration / av.time_base if container.duration else 0.0
        begin = container.start_time / av.time_base if container.start_time else 0.0
        slack = max(SLACK_SECONDS, SLACK_FRAMES / float(stream.average_rate or 25))
        short = self.reached - begin < said - slack or self.done + self.damaged < stream.frames - SLACK_FRAMES
        if not self.done:
            return DataError(f"{self.path} holds no picture that can be decoded{self.broken and ': ' + self.broken}")
        if short or self.broken:
            of = f" of {stream.frames}" if stream.frames else ""
            return DataError(
                f"{self.path} breaks off after {self.done}{of} frames, {max(0.0, self.reached - begin):.1f} s of "
                f"{said:.1f} s{self.broken and ' (' + self.broken + ')'}; what was read until there is kept"
            )
        if self.damaged:
            return DataError(
                f"{self.path} is damaged: {self.damaged} packets do not decode and their frames are missing, the "
                f"other {self.done} are done"
            )
        return None


@dataclass(frozen=True)
class Camera:
    """A camera of this machine by its number, until it is unplugged or the program is interrupted."""

    index: int
    count: int | None = None

    @property
    def name(self) -> str:
        """See Source."""
        return f"camera-{self.index}"

    def frames(self) -> Iterator[Frame | DataError]:
        """See Source. Raises ConfigError where there is no such camera."""
        device, driver = _device(self.index)
        try:
            container = av.open(device, format=driver)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise ConfigError(
                f"camera {self.index} ({device}) cannot be opened: {_said(error)}. Is it plugged in, and may this "
                "user read it? Try another --camera number."
            ) from None
        started = time.monotonic()
        with container:
            number = 0
            try:
                for frame in container.decode(video=0):
                    yield Frame(_upright(frame), self.name, number, time.monotonic() - started)
                    number += 1
            except (av.error.FFmpegError, OSError) as error:
                yield DataError(f"camera {self.index} ({device}) stopped after {number} frames: {_said(error)}")


class VideoWriter:
    """An annotated video: H.264 in MP4 at the frames' own moments. Whole once closed, under its final name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.stem}.part{path.suffix}")
        self._container: Any = None
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.close()

    def write(self, picture: Image.Image, seconds: float) -> None:
        """One more frame; later ones have the size of the first. Raises DataError where the file cannot be written."""
        try:
            if self._container is None:
                self._open(picture.size)
            size = (self._stream.width, self._stream.height)
            # Even sides are H.264's demand on 4:2:0 colour; the odd last line is cut.
            even = (picture.width // 2 * 2, picture.height // 2 * 2)
            fitting = picture.crop((0, 0, *size)) if even == size else picture.resize(size)
            frame = VideoFrame.from_ndarray(np.asarray(fitting.convert("RGB")), format="rgb24")
            # Two frames cannot share a moment.
            self._last = max(self._last + 1, round(seconds / CLOCK))
            frame.pts, frame.time_base = self._last, CLOCK
            self._container.mux(self._stream.encode(frame))
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(f"{self.path} cannot be written: {_said(error)}") from None

    def close(self) -> None:
        """Finishes the file; nothing is left where no frame was written."""
        if self._container is None:
            return
        container, self._container = self._container, None
        try:
            container.mux(self._stream.encode(None))
            container.close()
            self._partial.replace(self.path)
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(f"{self.path} cannot be finished: {_said(error)}") from None

    def _open(self, size: tuple[int, int]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The index in front: players begin before the whole file is there.
        self._container = av.open(str(self._partial), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", rate=30, options={"crf": QUALITY, "preset": "veryfast"})
        self._stream.width, self._stream.height = (max(2, side // 2 * 2) for side in size)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = CLOCK
        self._stream.time_base = CLOCK


def _upright(frame: VideoFrame) -> Image.Image:
    """RGB, turned as the display matrix says: telephones store what they held upright lying down."""
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _device(index: int) -> tuple[str, str]:
    """How FFmpeg names a camera on this system, and its driver."""
    system = platform.system()
    if system == "Darwin":
        return str(index), "avfoundation"
    if system == "Windows":
        raise ConfigError("cameras have names instead of numbers on Windows; record a video file and give that")
    return f"/dev/video{index}", "v4l2"


def _kinds(container: InputContainer) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "an empty container"


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
