"""One process at a time, also where the last one was killed; and whether one was."""

from __future__ import annotations

import fcntl
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pose.progress import say


@contextmanager
def alone(lock: Path, busy: str) -> Iterator[None]:
    """Holds a lock file that the operating system frees when its process dies; threads wait for each other too.

    busy: said where somebody else holds it, before waiting.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{busy}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def died_here(host: str, process: str) -> bool:
    """Whether that was a process of this machine that is no more; False for what names no process."""
    return host == socket.gethostname() and process.isdigit() and not Path(f"/proc/{process}").exists()
