"""Checkpoints that are either whole or not there.

A checkpoint is a directory step-XXXXXXXX with state.pt and manifest.json. It is written beside its place, the manifest
with the state's SHA-256 last, and renamed; it is read only after its bytes were checked, and without executing code.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from pose.digests import file_sha256
from pose.errors import TrainingError
from pose.progress import say

STATE = "state.pt"
MANIFEST = "manifest.json"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def save(directory: Path, step: int, state: dict[str, Any], fingerprint: str, keep: int) -> Path:
    """Writes directory/step-XXXXXXXX and removes all but the newest `keep`. Returns its path.

    Raises TrainingError where the disk is full or refuses; earlier checkpoints are then untouched.
    """
    final = directory / f"step-{step:08d}"
    partial = directory / f".{final.name}.partial"
    writer = None
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with (partial / STATE).open("wb") as file:
            writer = _HashingWriter(file)
            torch.save(state, cast(BinaryIO, writer))
            file.flush()
            os.fsync(file.fileno())
        manifest = {
            "step": step,
            "fingerprint": fingerprint,
            "files": {STATE: {"sha256": writer.digest.hexdigest(), "bytes": writer.written}},
        }
        _write_synced(partial / MANIFEST, json.dumps(manifest, indent=1))
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        # torch.save turns a failed write into its own RuntimeError; the writer kept the cause.
        cause = writer.failure if writer is not None and writer.failure is not None else error
        if not isinstance(cause, OSError):
            raise
        raise TrainingError(_no_room(final, cause, writer.written if writer else 0)) from error
    for old in complete(directory)[:-keep]:
        shutil.rmtree(old)
    return final


def complete(directory: Path) -> list[Path]:
    """Checkpoints that have a manifest, oldest first."""
    return sorted(path for path in directory.glob("step-*") if (path / MANIFEST).exists())


def verify(path: Path, fingerprint: str) -> None:
    """Raises TrainingError where a checkpoint is torn, altered or another training's."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        entry, owner = manifest["files"][STATE], manifest["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"checkpoint {path} has no readable {MANIFEST} ({error}); it was never finished") from error
    if owner != fingerprint:
        raise TrainingError(f"checkpoint {path} belongs to the training {owner[:12]}, not to {fingerprint[:12]}")
    file = path / STATE
    if not file.exists() or file.stat().st_size != entry["bytes"] or file_sha256(file) != entry["sha256"]:
        size = file.stat().st_size if file.exists() else 0
        raise TrainingError(
            f"checkpoint {path} is damaged: {STATE} has {size} bytes and does not match the sha256 of the "
            f"{entry['bytes']} bytes that its manifest recorded"
        )


def load(path: Path, fingerprint: str) -> dict[str, Any]:
    """The state of one checkpoint, verified first. TrainingError as in verify."""
    verify(path, fingerprint)
    return torch.load(path / STATE, map_location="cpu", weights_only=True)


def latest(directory: Path, fingerprint: str) -> Path | None:
    """The newest checkpoint that can be trusted, or None. Others are passed over, and said so."""
    for path in sorted(directory.glob("step-*"), reverse=True):
        try:
            verify(path, fingerprint)
        except TrainingError as error:
            say(f"warning: {error}. Falling back to an earlier checkpoint.")
        else:
            return path
    return None


class _HashingWriter:
    """A file that torch.save writes to; digests what passes and remembers why a write failed."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.written = 0
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.failure = error
            raise
        self.digest.update(data)
        self.written += len(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _no_room(path: Path, error: OSError, written: int) -> str:
    free = shutil.disk_usage(path.parent).free if path.parent.exists() else 0
    why = "the disk is full" if error.errno in NO_ROOM else str(error)
    return (
        f"checkpoint {path} could not be written: {why} ({written:,} bytes written, {free:,} bytes free). "
        f"Earlier checkpoints are intact; make room and start the same training again, it resumes from them"
    )
