"""A run's record survives an MLflow that is away, and reaches it exactly once when it is back."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from pose.errors import RegistryError
from pose.registry import Registry, Store
from pose.registry import runs as runs_module
from pose.registry.runs import Mirror, append_line, close_orphans, journal_path, read_journal, start_run, sync

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def here(registry: Registry, tmp_path: Path) -> Store:
    """The shared database with journals of this test alone."""
    store = Store(tmp_path, uri=registry.store.uri)
    vars(store)["client"], vars(store)["experiment_id"] = registry.store.client, registry.store.experiment_id
    return store


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    return NOWHERE


def points(store: Store, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in store.client.get_metric_history(run_id, name)]


def identity() -> str:
    return uuid.uuid4().hex


def test_history_is_followed_line_by_line_and_once(here: Store, tmp_path: Path) -> None:
    history, fingerprint = tmp_path / "history.jsonl", identity()
    epochs = [{"epoch": n, "phase": "regression", "losses": {"presence": 0.5 / (n + 1)}, "lr": None} for n in range(3)]
    history.write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs[:2]))
    log = start_run(here, "followed", fingerprint, {"dataset": "drawn"}, {"optimiser": {"lr": 0.1}, "widths": [1, 2]})
    log.follow(history)
    with history.open("a") as file:
        file.write(json.dumps(epochs[2]) + '\n{"epoch": 3, "los')  # the next line is being written
    log.finish()
    assert log.run_id is not None
    assert points(here, log.run_id, "losses/presence") == [(0, 0.5), (1, 0.25), (2, pytest.approx(0.5 / 3))]
    run = here.client.get_run(log.run_id)
    assert run.data.params == {"optimiser/lr": "0.1", "widths": "[1, 2]"}
    assert run.data.tags["dataset"] == "drawn"
    assert run.info.status == "FINISHED"

    resumed = start_run(here, "followed", fingerprint, {"dataset": "drawn"}, {})
    resumed.follow(history)
    resumed.metrics({"pck": 0.4}, step=3)
    resumed.finish()
    assert resumed.run_id == log.run_id, "one fingerprint is one run"
    assert len(points(here, log.run_id, "losses/presence")) == 3
    assert points(here, log.run_id, "pck") == [(3, 0.4)]


def test_training_neither_fails_nor_waits_without_mlflow(
    tmp_path: Path, away: str, capsys: pytest.CaptureFixture[str], here: Store
) -> None:
    store, fingerprint = Store(tmp_path, uri=away), identity()
    begun = time.monotonic()
    log = start_run(store, "alone", fingerprint, {}, {"lr": 0.1})
    for step in range(300):
        log.metrics({"loss": 1.0 / (step + 1), "bad": float("nan")}, step)
    assert time.monotonic() - begun < 2.0
    log.finish(wait=15)
    assert time.monotonic() - begun < 20.0
    assert log.run_id is None
    assert capsys.readouterr().err.count("MLflow is out of reach") == 1
    with pytest.raises(RegistryError, match=r"MLflow at http://127\.0\.0\.1:9 does not answer"):
        log.synced()
    with pytest.raises(RegistryError, match="does not answer"):
        sync(store)

    # MLflow is back: everything is there, once, however often it is asked for.
    (run_id,) = sync(here)
    assert sync(here) == []
    assert len(points(here, run_id, "loss")) == 300
    run = here.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1"}
    assert "bad" not in run.data.metrics


def test_a_request_whose_answer_was_lost_is_repeated_without_doubling(
    here: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow takes the points and dies before the cursor moves: sent again, they are still single."""
    path = journal_path(here, "cut", identity())
    append_line(
        path, {"kind": "start", "log_id": identity(), "name": "cut", "fingerprint": "f", "tags": {}, "params": {}}
    )
    for step in range(5):
        append_line(path, {"kind": "metrics", "step": step, "values": {"loss": float(step)}})
    mirror = Mirror(here, path)
    healthy = here.client.set_tag

    def cut(run_id: str, key: str, value: str) -> None:
        if key == runs_module.CURSOR:
            raise ConnectionError("cut")
        healthy(run_id, key, value)

    with monkeypatch.context() as patched:
        patched.setattr(here.client, "set_tag", cut)
        with pytest.raises(ConnectionError):
            mirror.send()
    again = Mirror(here, path)
    again.send()
    assert again.run_id == mirror.run_id
    assert again.run_id is not None
    assert points(here, again.run_id, "loss") == [(step, float(step)) for step in range(5)]


def test_a_line_cut_by_a_crash_is_dropped(here: Store) -> None:
    fingerprint = identity()
    path = journal_path(here, "torn", fingerprint)
    start_run(here, "torn", fingerprint, {}, {}).finish()
    with path.open("a") as file:
        file.write('{"kind": "metrics", "val')
    log = start_run(here, "torn", fingerprint, {}, {})
    log.metrics({"loss": 1.0}, 0)
    log.finish()
    assert [line["kind"] for line in read_journal(path)] == ["start", "finish", "resume", "tags", "metrics", "finish"]
    assert log.run_id is not None
    assert points(here, log.run_id, "loss") == [(0, 1.0)]


def test_runs_of_dead_processes_are_closed_and_living_ones_left(here: Store) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host, now = socket.gethostname(), time.time()
    owners = {
        "dead": (f"{host}:{dead.pid}", now),
        "living": (f"{host}:{os.getpid()}", now),
        "silent": ("elsewhere:1", now - 2 * runs_module.ORPHAN_SECONDS),
        "heard": ("elsewhere:1", now),
    }
    made = {
        name: here.client.create_run(
            here.experiment_id, tags={runs_module.OWNER: owner, runs_module.HEARTBEAT: str(beat)}
        ).info.run_id
        for name, (owner, beat) in owners.items()
    }
    closed = close_orphans(here)
    assert {name for name, run_id in made.items() if run_id in closed} == {"dead", "silent"}
    assert here.client.get_run(made["dead"]).info.status == "KILLED"
    assert here.client.get_run(made["living"]).info.status == "RUNNING"
    for name in ("living", "heard"):
        here.client.set_terminated(made[name])
