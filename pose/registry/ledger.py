"""Who moved a champion, when, why, from what to what: MLflow keeps aliases, but not their history."""

from __future__ import annotations

import getpass
import json
import os
import socket
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from pose.registry.store import Store

PREFIX = "ledger-"


@dataclass(frozen=True)
class Entry:
    """One move of the alias `champion`. Versions are None where there was none."""

    action: str
    """promote, rollback, or found: the alias had been moved by other means."""
    who: str
    why: str
    from_version: int | None
    to_version: int | None
    numbers: dict[str, Any] = field(default_factory=dict)
    when: str = ""
    """UTC, ISO 8601."""


def whoami() -> str:
    """user@host, who an entry is signed by where nobody else is named."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def append(store: Store, model: str, entry: Entry) -> Entry:
    """Writes the next entry. Call it under the model's lock: entries are numbered, clocks decide nothing."""
    number = max(_entries(store, model), default=0) + 1
    stamped = Entry(**{**asdict(entry), "when": datetime.now(UTC).isoformat(timespec="seconds")})
    store.client.set_registered_model_tag(model, f"{PREFIX}{number:06d}", json.dumps(asdict(stamped)))
    return stamped


def read(store: Store, model: str) -> list[Entry]:
    """All entries of one model, oldest first."""
    return [entry for _, entry in sorted(_entries(store, model).items())]


def _entries(store: Store, model: str) -> dict[int, Entry]:
    tags = store.client.get_registered_model(model).tags
    return {
        int(key[len(PREFIX) :]): Entry(**json.loads(value)) for key, value in tags.items() if key.startswith(PREFIX)
    }
