"""Progress of a training that happens in other processes: their history.jsonl, told as it grows."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pose.progress import say

POLL_SECONDS = 0.5


@contextmanager
def following(history: Path, name: str) -> Iterator[None]:
    """Inside, every new line of history.jsonl is said once. A file that never appears is no error."""
    done = threading.Event()
    thread = threading.Thread(target=_follow, args=(history, name, done), name="follow-history", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def headline(name: str, record: dict[str, Any]) -> str:
    """One epoch in one line."""
    validated = " · ".join(f"{key} {value:.4g}" for key, value in record["val"].items())
    return (
        f"{name} epoch {record['epoch']} ({record['phase']}): train loss {record['train']['loss']:.4g} · "
        f"val {validated} · {record['images_per_second']:.0f} img/s · {record['seconds']:.1f} s"
    )


def _follow(history: Path, name: str, done: threading.Event) -> None:
    told = len(_records(history))
    while not done.is_set():
        done.wait(POLL_SECONDS)
        records = _records(history)
        for record in records[told:]:
            say(headline(name, record))
        # A resumed training may have taken back epochs that it will do again.
        told = len(records)


def _records(history: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in history.read_text().splitlines()] if history.exists() else []
