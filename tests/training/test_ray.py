"""Ray Train with real workers, one of which is killed."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import pose.training
from pose.errors import TrainingError
from pose.training.spec import Outcome


def kill_a_worker_after(checkpoint: Path, killed: list[int]) -> None:
    """Waits for a checkpoint, then sends SIGKILL to the youngest Ray Train worker among this process's children."""
    while not checkpoint.exists():
        time.sleep(0.01)
    workers = [
        process
        for process in psutil.Process().children(recursive=True)
        if any("RayTrainWorker" in word for word in process.cmdline())
    ]
    victim = max(workers, key=lambda process: process.create_time())
    os.kill(victim.pid, signal.SIGKILL)
    killed.append(victim.pid)


@pytest.fixture
def private_ray(monkeypatch):
    """Ray shut down before and after, so that no test sees another's cluster."""
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.shutdown()
    yield
    ray.shutdown()


def test_one_worker_equals_this_process(spec, tmp_path, private_ray):
    here = spec(storage=tmp_path / "here")
    there = spec(storage=tmp_path / "there", training={"ray": {"workers": 1, "poll_seconds": 0.2}})
    assert there.fingerprint == here.fingerprint
    assert in_a_thread_of_its_own(there).weights_sha256 == pose.training.run(here).weights_sha256
    # train-all's threads are gone before its report is written; Ray ends a driver that has lost these.
    children = psutil.Process().children(recursive=True)
    alive = {process.name() for process in children if process.status() != psutil.STATUS_ZOMBIE}
    assert {"gcs_server", "raylet"} <= alive


def in_a_thread_of_its_own(spec) -> Outcome:
    """Trains as an architecture of train-all does: on a thread that then ends."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(pose.training.run, spec).result()


@pytest.mark.parametrize(
    ("parallel", "architectures", "cpus"),
    [(1, ["baseline1", "vgg19"], 4), (2, ["baseline1", "vgg19"], 6), (2, ["baseline1"], 4)],
)
def test_a_local_ray_has_room_for_all_that_train_at_once(spec, private_ray, monkeypatch, parallel, architectures, cpus):
    asked = []

    def refuse(**options):
        asked.append(options["num_cpus"])
        raise RuntimeError("no Ray in this test")

    monkeypatch.setattr("ray.init", refuse)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    one = spec(training={"ray": {"workers": 2, "cpus_per_worker": 1.5}})
    params = one.params.model_copy(update={"parallel": parallel, "architectures": architectures})
    with pytest.raises(TrainingError, match="Ray did not start"):
        pose.training.run(dataclasses.replace(one, params=params))
    assert set(asked) == {cpus}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_changes_nothing(spec, tmp_path, private_ray):
    from test_resume import train_in_ranks

    many = {
        "phases": [
            {
                "name": "regression",
                "epochs": 15,
                "train": ["trunk", "presence", "coordinates"],
                "losses": {"presence": 0.1, "coordinates": 10.0},
            }
        ]
    }
    ray = {"workers": 2, "cpus_per_worker": 1, "poll_seconds": 0.2, "max_failures": 2}
    training = {"ray": ray, "checkpoint": {"every_steps": 4, "keep": 100}}
    whole, broken = (spec(storage=tmp_path / name, training=training, **many) for name in ("whole", "broken"))
    assert train_in_ranks(whole, 2) == [0, 0]
    killed: list[int] = []
    killer = threading.Thread(
        target=kill_a_worker_after, args=(broken.run_dir / "checkpoints" / "step-00000010", killed), daemon=True
    )
    killer.start()
    outcome = pose.training.run(broken)
    assert killed
    assert len(outcome.resumed_from) == 1
    assert outcome.weights_sha256 == Outcome.load(whole.run_dir).weights_sha256


@pytest.mark.slow
def test_checkpoints_travel_through_a_storage_path(spec, tmp_path, private_ray):
    """Workers without a common disk: results come back through the storage, also to a driver that lost them."""
    here = pose.training.run(spec(storage=tmp_path / "here"))
    ray = {"workers": 1, "poll_seconds": 0.2, "storage_path": str(tmp_path / "store")}
    there = spec(storage=tmp_path / "there", training={"ray": ray})
    outcome = pose.training.run(there)
    assert outcome.weights_sha256 == here.weights_sha256
    assert not (there.run_dir / "checkpoints").exists()
    (there.run_dir / "outcome.json").unlink()
    assert pose.training.run(there).seconds == outcome.seconds
