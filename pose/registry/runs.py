"""The record of a training: a local journal that is the truth, and a mirror of it in MLflow.

Training never waits for MLflow and never fails with it. Every line of the journal reaches MLflow exactly once: the
run's cursor moves after each batch, and points keep their first timestamp, so that a batch sent again because the
cursor was not moved is one batch.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pose.alone import died_here
from pose.progress import say
from pose.registry.store import Store, translated

RETRY_SECONDS = 30.0
"""How long the mirror leaves an unreachable MLflow alone."""
FIRST_ANSWER_SECONDS = 10.0
HEARTBEAT_SECONDS = 60.0
ORPHAN_SECONDS = 900.0
"""A RUNNING run that has not been heard of for this long has lost its process."""
BATCH = 200
"""Journal lines per request; MLflow accepts 1,000 metrics, 100 params and 100 tags."""
CURSOR, LOG_ID, HEARTBEAT, OWNER = "pose.cursor", "pose.log_id", "pose.heartbeat", "pose.owner"


class RunLog:
    """One run. Its methods only append to the local journal; a daemon thread carries the lines to MLflow."""

    def __init__(self, store: Store, path: Path) -> None:
        self.store, self.path = store, path
        self._lock = threading.Lock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._followed: Path | None = None
        self._away = False
        """MLflow could not be reached the last time."""
        self._seen = {line["from"] for line in read_journal(path) if "from" in line}
        self._mirror = Mirror(store, path)
        self._thread = threading.Thread(target=self._carry, name="pose-run-log", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of this run, for which a reachable MLflow is given a moment; None while it is out of reach."""
        deadline = time.monotonic() + FIRST_ANSWER_SECONDS
        while self._mirror.run_id is None and not self._away and time.monotonic() < deadline:
            time.sleep(0.02)
        return self._mirror.run_id

    def metrics(self, values: Mapping[str, Any], step: int) -> None:
        """Appends numbers; nested names are joined with `/`, what is no finite number is left out."""
        self._append({"kind": "metrics", "step": step, "values": flatten(values)})

    def tags(self, values: Mapping[str, str]) -> None:
        """Appends tags; a later value replaces an earlier one."""
        self._append({"kind": "tags", "values": {key: str(value) for key, value in values.items()}})

    def follow(self, history: Path) -> None:
        """From now on every line of this history.jsonl becomes metrics of its epoch, once, restarts included."""
        self._followed = history
        self._wake.set()

    def finish(self, status: str = "FINISHED", wait: float = 20.0) -> None:
        """Ends the run (FINISHED, FAILED, KILLED) and gives MLflow at most `wait` seconds to take the rest."""
        self._read_history()
        self._append({"kind": "finish", "status": status})
        self._stop.set()
        self._wake.set()
        self._thread.join(wait)
        if self._thread.is_alive():
            say(f"MLflow at {self.store.uri} is slow; the rest of {self.path} is logged by the next run")

    def synced(self) -> str:
        """Carries everything over now and returns the run's id. Raises RegistryError when MLflow is unreachable."""
        with translated(self.store.uri):
            self._mirror.send()
        assert self._mirror.run_id is not None
        return self._mirror.run_id

    def _append(self, line: dict[str, Any]) -> None:
        with self._lock:
            append_line(self.path, line)
        self._wake.set()

    def _read_history(self) -> None:
        if self._followed is None or not self._followed.exists():
            return
        for record in read_journal(self._followed):
            key = f"epoch {record.get('epoch')}"
            with self._lock:
                if key in self._seen:
                    continue
                self._seen.add(key)
                values = flatten({name: value for name, value in record.items() if name != "epoch"})
                line = {"kind": "metrics", "step": int(record.get("epoch", 0)), "values": values, "from": key}
                append_line(self.path, line)

    def _carry(self) -> None:
        """The mirror's thread: whatever goes wrong here is said once and tried again later, never raised."""
        spoken, not_before = False, 0.0
        while True:
            last = self._stop.is_set()
            try:
                self._read_history()
                if last or time.monotonic() >= not_before:
                    self._mirror.send()
                    spoken = self._away = False
            except Exception as error:  # an outage of any kind must not reach the training
                self._away = True
                not_before = time.monotonic() + RETRY_SECONDS
                if not spoken:
                    text = " ".join(str(error).split())[:200]
                    say(f"MLflow is out of reach, training goes on and its record is kept in {self.path}: {text}")
                    spoken = True
            if last:
                return
            self._wake.wait(1.0 if self._followed is not None else HEARTBEAT_SECONDS)
            self._wake.clear()


class Mirror:
    """Carries a journal's lines to its MLflow run, from the run's cursor on."""

    def __init__(self, store: Store, path: Path) -> None:
        self.store, self.path = store, path
        self.run_id: str | None = None
        self._sent = 0
        self._beat = 0.0
        self._lock = threading.Lock()

    def send(self) -> None:
        """Sends what is new. Raises whatever MLflow raises; nothing is lost or doubled by calling it again."""
        with self._lock:
            lines = read_journal(self.path)
            if self.run_id is None:
                self._attach(lines[0])
            while self._sent < len(lines):
                self._send_batch(lines[self._sent : self._sent + BATCH])
            assert self.run_id is not None
            if time.monotonic() - self._beat > HEARTBEAT_SECONDS and lines[-1]["kind"] != "finish":
                self._beat = time.monotonic()
                self.store.client.set_tag(self.run_id, HEARTBEAT, f"{time.time():.0f}")

    def _attach(self, start: dict[str, Any]) -> None:
        """Finds this journal's run, or creates it. Its log id makes a creation whose answer was lost findable."""
        client, experiment = self.store.client, self.store.experiment_id
        found = client.search_runs([experiment], f"tags.`{LOG_ID}` = '{start['log_id']}'", max_results=1)
        if found:
            run = found[0]
        else:
            tags = {**start["tags"], LOG_ID: start["log_id"], "fingerprint": start["fingerprint"], CURSOR: "0"}
            run = client.create_run(experiment, start_time=start["time"], tags=tags, run_name=start["name"])
        self._sent = int(run.data.tags.get(CURSOR, 0))
        self.run_id = run.info.run_id

    def _send_batch(self, lines: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        assert self.run_id is not None
        client = self.store.client
        params = {key: value for line in lines if line["kind"] == "start" for key, value in line["params"].items()}
        for chunk in _chunks([Param(key, str(value)) for key, value in params.items()], 100):
            client.log_batch(self.run_id, params=chunk)
        points = [
            Metric(key, value, line["time"], line["step"])
            for line in lines
            if line["kind"] == "metrics"
            for key, value in line["values"].items()
        ]
        for chunk in _chunks(points, 1000):
            client.log_batch(self.run_id, metrics=chunk)
        tags = {key: value for line in lines if line["kind"] == "tags" for key, value in line["values"].items()}
        owner = [line["owner"] for line in lines if "owner" in line]
        tags |= {OWNER: owner[-1], HEARTBEAT: f"{time.time():.0f}"} if owner else {}
        for line in lines:
            if line["kind"] == "finish":
                client.set_terminated(self.run_id, status=line["status"], end_time=line["time"])
            elif line["kind"] in ("start", "resume"):
                client.update_run(self.run_id, status="RUNNING")
        for chunk in _chunks([RunTag(key, value) for key, value in tags.items()], 100):
            client.log_batch(self.run_id, tags=chunk)
        sent = self._sent + len(lines)
        client.set_tag(self.run_id, CURSOR, str(sent))
        self._sent = sent


def start_run(store: Store, name: str, fingerprint: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> RunLog:
    """The run of this fingerprint, new or gone on with where an earlier process left it. Needs no MLflow."""
    path = journal_path(store, name, fingerprint)
    _drop_torn_line(path)
    owner = f"{socket.gethostname()}:{os.getpid()}"
    if read_journal(path):
        append_line(path, {"kind": "resume", "owner": owner})
        append_line(path, {"kind": "tags", "values": dict(tags)})
    else:
        flat = {key: str(value)[:6000] for key, value in flatten_any(params).items()}
        start = {"name": name, "fingerprint": fingerprint, "tags": dict(tags), "params": flat}
        append_line(path, {"kind": "start", "log_id": uuid.uuid4().hex, "owner": owner, **start})
    return RunLog(store, path)


def sync(store: Store) -> list[str]:
    """Replays what MLflow has not seen of the journals, closes orphaned runs; returns the ids of runs it added to."""
    sent_now: list[str] = []
    journals = sorted(_journals(store).glob("*.jsonl"))
    if not journals:
        return sent_now
    with translated(store.uri):
        cursors = _cursors(store)
        for path in journals:
            lines = read_journal(path)
            if not lines or cursors.get(lines[0]["log_id"]) == len(lines):
                continue
            mirror = Mirror(store, path)
            mirror.send()
            assert mirror.run_id is not None
            sent_now.append(mirror.run_id)
        close_orphans(store)
    return sent_now


def _cursors(store: Store) -> dict[str, int]:
    """How many journal lines MLflow has, by log id."""
    found: dict[str, int] = {}
    token = None
    while True:
        page = store.client.search_runs([store.experiment_id], max_results=1000, page_token=token)
        found |= {run.data.tags.get(LOG_ID, ""): int(run.data.tags.get(CURSOR, 0)) for run in page}
        token = page.token
        if not token:
            return found


def close_orphans(store: Store, now: float | None = None) -> list[str]:
    """Ends runs that MLflow believes RUNNING although their process is gone. Returns their ids."""
    now = time.time() if now is None else now
    closed = []
    for run in store.client.search_runs([store.experiment_id], "attributes.status = 'RUNNING'"):
        host, _, process = run.data.tags.get(OWNER, "").partition(":")
        silent = now - float(run.data.tags.get(HEARTBEAT, run.info.start_time / 1000))
        if died_here(host, process) or silent > ORPHAN_SECONDS:
            store.client.set_terminated(run.info.run_id, status="KILLED")
            closed.append(run.info.run_id)
    return closed


def journal_path(store: Store, name: str, fingerprint: str) -> Path:
    """Where the run of this name and fingerprint keeps its journal."""
    return _journals(store) / f"{name}-{fingerprint[:12]}.jsonl"


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Adds one JSON line with the time in milliseconds, in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**line, "time": int(time.time() * 1000)}, allow_nan=False) + "\n"
    with path.open("a") as file:
        file.write(text)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All complete lines. A last line without its end was cut by a crash and is not there yet."""
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines() if line]


def _drop_torn_line(path: Path) -> None:
    """Cuts what a crash left after the last complete line, so that the next line starts on its own."""
    if path.exists():
        whole = path.read_bytes().rpartition(b"\n")
        os.truncate(path, len(whole[0]) + len(whole[1]))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Finite numbers of a nested mapping by their joined names."""
    numbers = {}
    for name, value in flatten_any(values, prefix).items():
        if isinstance(value, (int, float)) and math.isfinite(value):
            numbers[name] = float(value)
    return numbers


def flatten_any(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of a nested mapping by their names joined with `/`."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            leaves |= flatten_any(value, f"{prefix}{key}/")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def _journals(store: Store) -> Path:
    return store.storage / "journals"


def _chunks(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]
