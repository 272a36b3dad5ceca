"""The audit's look at every image: does it exist, decode to its end, have the size that the annotations say."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pose.data.duplicates import thumbnail
from pose.data.findings import Finding
from pose.progress import track

ORIENTATION = 0x0112
"""EXIF tag; 1 is upright."""


@dataclass(frozen=True)
class Scan:
    """What one image file turned out to be. No thumbnail: it is left out."""

    findings: tuple[Finding, ...]
    sha256: str = ""
    """Of the file's bytes; empty where there is no file."""
    thumbnail: np.ndarray | None = None


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def scan_images(root: Path, images: Sequence[dict], max_pixels: int) -> list[Scan]:
    """Scans COCO image records in their order, on all cores."""
    with ThreadPoolExecutor(cores()) as pool:
        scans = pool.map(lambda image: scan_image(root, image, max_pixels), images)
        return list(track(scans, "auditing images", total=len(images)))


def scan_image(root: Path, record: dict, max_pixels: int) -> Scan:
    """Reads, hashes and fully decodes one image."""
    file = record["file_name"]

    def finding(kind: str, message: str) -> Finding:
        return Finding(kind, message, file=file, image_id=record["id"])

    try:
        content = (root / file).read_bytes()
    except OSError as error:
        return Scan((finding("missing_image", f"cannot be read: {error.strerror}"),))
    digest = hashlib.sha256(content).hexdigest()
    try:
        image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        return Scan((finding("unreadable_image", f"{len(content)} bytes that are no known image format"),), digest)
    except Image.DecompressionBombError as error:
        return Scan((finding("too_many_pixels", str(error)),), digest)
    except (OSError, SyntaxError, ValueError) as error:  # it ends before its header does
        return Scan((finding("truncated_image", f"{len(content)} bytes do not decode: {error}"),), digest)
    width, height = image.size
    if width * height > max_pixels:
        return Scan((finding("too_many_pixels", f"{width} x {height} px, at most {max_pixels} are allowed"),), digest)
    if (width, height) != (record["width"], record["height"]):
        said = f"{width} x {height} px, the annotations say {record['width']} x {record['height']}"
        return Scan((finding("size_mismatch", said),), digest)
    try:
        small = thumbnail(image)
    except (OSError, SyntaxError, ValueError) as error:
        return Scan((finding("truncated_image", f"{len(content)} bytes do not decode: {error}"),), digest)
    turned = image.getexif().get(ORIENTATION, 1)
    warnings = (finding("exif_orientation", f"EXIF orientation {turned}"),) if turned != 1 else ()
    return Scan(warnings, digest, small)
