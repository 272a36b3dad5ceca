"""The data step: DVC brings a dataset up to date and names it by its hash.

DVC runs as a subprocess: its lock is keyed by process id and does not protect threads, and its own exceptions
are not an interface.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from pose.config import ROOT
from pose.data.shards import verify
from pose.errors import DataError
from pose.progress import say

BUSY_SIGNS = ("is busy, it is being blocked by", "Unable to acquire lock")
LAST_WORDS = 12
"""Lines of output quoted where none of them says ERROR."""


class DatasetBusyError(DataError):
    """Another process is preparing this dataset; worth waiting for."""


@dataclass(frozen=True)
class DatasetVersion:
    """A prepared dataset and the hash of its bytes."""

    name: str
    directory: Path
    data_hash: str
    """DVC's md5 of the prepared directory."""
    changed: bool
    """Whether this call had to prepare anything."""


def bring_up_to_date(dataset: str) -> DatasetVersion:
    """Fetches and prepares what changed. Raises DatasetBusyError, or DataError with DVC's last words."""
    stage = f"prepare@{dataset}"
    before = _recorded_hash(stage)
    output = _repro(stage)
    after = _recorded_hash(stage)
    if after is None:
        raise DataError(f"dvc.lock does not name {stage} although `dvc repro {stage}` succeeded")
    directory = ROOT / "data" / "prepared" / dataset
    # DVC checks out a damaged cache without a word.
    verify(directory)
    return DatasetVersion(dataset, directory, after, before != after or "Running stage" in output)


def _repro(stage: str) -> str:
    # The stages call `python`: it has to be this one.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["DVC_NO_ANALYTICS"] = "1"
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", stage],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    last: deque[str] = deque(maxlen=200)
    for line in process.stdout:
        last.append(line)
        say(f"  {line.rstrip()}")
    output = "".join(last)
    if process.wait() != 0:
        if any(sign in output for sign in BUSY_SIGNS):
            raise DatasetBusyError(f"{stage}: another process holds DVC's lock: {_reason(list(last))}")
        raise DataError(f"{stage} failed (exit code {process.returncode}): {_reason(list(last))}")
    return output


def _reason(lines: Sequence[str]) -> str:
    """In one paragraph: the error of our own command where it printed one, else what DVC said from ERROR on."""
    ours = [line for line in lines if line.startswith(("DataError: ", "ConfigError: "))]
    errors = [number for number, line in enumerate(lines) if line.startswith("ERROR: ")]
    said = ours[-1:] or lines[errors[0] if errors else -LAST_WORDS :]
    return " ".join(" ".join(said).split()) or "it printed nothing"


def _recorded_hash(stage: str) -> str | None:
    path = ROOT / "dvc.lock"
    if not path.exists():
        return None
    stages = (yaml.safe_load(path.read_text()) or {}).get("stages", {})
    return stages[stage]["outs"][0]["md5"] if stage in stages else None
