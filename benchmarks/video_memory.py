"""Whether `pose predict` needs more memory the longer a video is.

    python -m benchmarks.video_memory MODEL [--frames 1000] [-- --detector DETECTOR]

MODEL is what `pose predict --model` takes; what follows -- goes to it as well. A video of drawn people, SIDE px to a
side, is predicted by the program itself in a process of its own, whose resident memory is read from /proc all the time.
`grown_mb` is the largest in the last quarter of that time less the largest in the second: in the first, models are
loaded and allocators fill. JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pose.config import SyntheticParams
from pose.data import synthetic
from pose.progress import say, track

SIDE, RATE, SCENES, PEOPLE = 320, 25, 10, (1, 6)
INTERVAL = 0.25
"""Seconds between two looks at the process."""


def write_video(path: Path, frames: int) -> None:
    """SCENES drawn scenes, one after the other, each panned to and fro."""
    params = SyntheticParams(skeleton="coco17", images=SCENES, width=SIDE, height=SIDE, people=PEOPLE, seed=5)
    scenes = [np.asarray(synthetic.draw(params, number)[0]) for number in range(SCENES)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(RATE))
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for number in track(range(frames), "drawing the video", total=frames):
            scene = scenes[number * SCENES // frames]
            shift = round(0.1 * SIDE * np.sin(number / RATE))
            picture = av.VideoFrame.from_ndarray(np.roll(scene, shift, axis=1), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def resident_mb(process: int) -> float:
    """Resident memory of a live process in MB; 0 once it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) / 1000 if found else 0.0


def watched(command: list[str], out: Path) -> Iterator[tuple[float, float]]:
    """Seconds and MB, again and again until the command ends. Raises CalledProcessError where it fails."""
    began = time.monotonic()
    with (out / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        while process.poll() is None:
            yield time.monotonic() - began, resident_mb(process.pid)
            time.sleep(INTERVAL)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, (out / "log").read_text())


def main() -> None:
    """Draws, predicts, watches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("more", nargs="*", help="for `pose predict`, after --")
    parser.add_argument("--frames", type=int, default=1000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        video = out / "video.mp4"
        write_video(video, asked.frames)
        command = [
            sys.executable,
            "-m",
            "pose.cli",
            "predict",
            str(video),
            "--model",
            asked.model,
            "--out",
            str(out / "found"),
        ]
        try:
            looks = [look for look in watched([*command, *asked.more], out) if look[1]]
        except subprocess.CalledProcessError as error:
            say(error.output)
            sys.exit(f"`pose predict` ended with {error.returncode}")
        found = json.loads((out / "found" / "predictions.json").read_text())
    seconds, memory = (np.array(column) for column in zip(*looks, strict=True))
    quarters = [
        memory[(seconds >= at * seconds[-1]) & (seconds <= (at + 0.25) * seconds[-1])].max()
        for at in (0, 0.25, 0.5, 0.75)
    ]
    print(
        json.dumps(
            {
                "frames": len({(entry["file_name"], entry["frame"]) for entry in found}),
                "people": len(found),
                "seconds": round(float(seconds[-1]), 1),
                "largest_mb_by_quarter": [round(float(quarter)) for quarter in quarters],
                "grown_mb": round(float(quarters[3] - quarters[1]), 1),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
