"""A long training as seen from Prefect: one progress artifact, moved on with every finished epoch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

POLL_SECONDS = 2.0


@contextmanager
def progress(name: str, history: Path, epochs: int) -> Iterator[None]:
    """While the block runs, the artifact `training-<name>` shows how many epochs history.jsonl has."""
    key = f"training-{name.replace('_', '-')}"
    artifact = create_progress_artifact(progress=0.0, key=key, description=f"{name}: {epochs} epochs")
    assert isinstance(artifact, UUID)  # not a coroutine: this is not asynchronous code
    over = threading.Event()

    def watch() -> None:
        shown = 0
        while True:
            last = over.wait(POLL_SECONDS)
            done = history.read_bytes().count(b"\n") if history.exists() else 0
            if done != shown:
                shown = done
                update_progress_artifact(artifact, progress=min(100.0, 100.0 * done / max(1, epochs)))
            if last:
                return

    thread = threading.Thread(target=copy_context().run, args=(watch,), name=key, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
