"""Videos to predict on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

Maker = Callable[..., Path]
RATE = 30


@pytest.fixture(scope="session")
def make_video() -> Maker:
    """Writes a video of noise with a white block that goes right by 4 px a frame; returns its path."""

    def make(
        path: Path, frames: int = 60, size: tuple[int, int] = (160, 120), codec: str = "libx264", **options
    ) -> Path:
        generator = np.random.default_rng(0)
        with av.open(str(path), "w", options=options) as container:
            stream = container.add_stream(codec, rate=RATE)
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            for n in range(frames):
                pixels = generator.integers(0, 90, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
                pixels = pixels.repeat(8, axis=0).repeat(8, axis=1)
                left = 4 * n % (size[0] - 40)
                pixels[40:80, left : left + 40] = 255
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))
        return path

    return make
