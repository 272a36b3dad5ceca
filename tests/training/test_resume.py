"""Killed and resumed equals never killed, bit for bit: in one process, with two ranks, and with three."""

from __future__ import annotations

import json
import multiprocessing
import uuid

import pytest
import train_rank

import pose.training
from pose.training import stage
from pose.training.spec import Outcome, TrainingSpec

PROCESSES = multiprocessing.get_context("forkserver")
# Imported once for all of them; the server finds only what the interpreter itself would find.
PROCESSES.set_forkserver_preload(["pose.training.loop", "torch._dynamo"])


def train_in_ranks(spec: TrainingSpec, size: int, *kill: int) -> list[int]:
    """Exit codes of the ranks."""
    path, rendezvous = spec.save(), spec.storage / f"rendezvous-{uuid.uuid4().hex}"
    ranks = [
        PROCESSES.Process(target=train_rank.start, args=(str(path), rank, size, str(rendezvous), *kill))
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=250)
    return [process.exitcode for process in ranks]


def timeless(outcome: Outcome) -> list[dict]:
    """The history without its clocks."""
    return [{k: v for k, v in r.items() if k not in ("seconds", "images_per_second")} for r in outcome.history]


class StoppedError(Exception):
    """Stands for whatever ends a process in the middle of an epoch."""


def interrupt_before(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Makes the next training fail before its so-many-th optimiser step."""
    taken, real = iter(range(step)), stage.Stage.step

    def failing(self, batch, number):
        if next(taken, None) is None:
            raise StoppedError
        real(self, batch, number)

    monkeypatch.setattr(stage.Stage, "step", failing)


@pytest.mark.parametrize("step", [1, 5, 6, 9, 12, 17])
def test_interrupted_anywhere_equals_uninterrupted(spec, tmp_path, monkeypatch, step):
    whole = pose.training.run(spec(storage=tmp_path / "whole"))
    with monkeypatch.context() as patch:
        interrupt_before(patch, step)
        with pytest.raises(StoppedError):
            pose.training.run(spec(storage=tmp_path / "broken"))
    resumed = pose.training.run(spec(storage=tmp_path / "broken"))
    assert resumed.weights_sha256 == whole.weights_sha256
    assert timeless(resumed) == timeless(whole)
    lines = [json.loads(line) for line in (resumed.run_dir / "history.jsonl").read_text().splitlines()]
    assert lines == resumed.history
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert resumed.resumed_from == ([] if step == 1 else [2 * (step // 2)])


def test_a_killed_process_resumes_exactly(spec, tmp_path):
    whole = pose.training.run(spec(storage=tmp_path / "whole"))
    broken = spec(storage=tmp_path / "broken")
    assert train_in_ranks(broken, 1, 9) == [-9]
    assert train_in_ranks(broken, 1) == [0]
    assert Outcome.load(broken.run_dir).weights_sha256 == whole.weights_sha256


@pytest.mark.parametrize("size", [2, 3])
def test_killed_ranks_resume_exactly(spec, tmp_path, size):
    whole, broken = spec(storage=tmp_path / "whole"), spec(storage=tmp_path / "broken")
    assert train_in_ranks(whole, size) == [0] * size
    codes = train_in_ranks(broken, size, 9, size - 1)
    assert codes[-1] == -9
    assert 0 not in codes
    assert train_in_ranks(broken, size) == [0] * size
    one, other = Outcome.load(whole.run_dir), Outcome.load(broken.run_dir)
    assert other.resumed_from == [8]
    assert other.weights_sha256 == one.weights_sha256
    assert timeless(other) == timeless(one)


PLATEAU = {
    "optimiser": {"kind": "sgd", "lr": 1e-12},  # nothing improves after the first epoch
    "schedule": {"kind": "plateau", "gamma": 0.5, "patience": 0, "cooldown": 1},
    "phases": [{"name": "only", "epochs": 5, "train": ["trunk", "coordinates"], "losses": {"coordinates": 1.0}}],
    "system": {"batch_norm": False},
}


@pytest.mark.parametrize("step", [12, 17, 21, 29])
def test_a_plateau_goes_on_where_it_was(spec, monkeypatch, step):
    with monkeypatch.context() as patch:
        interrupt_before(patch, step)
        with pytest.raises(StoppedError):
            pose.training.run(spec(**PLATEAU))
    resumed = pose.training.run(spec(**PLATEAU))
    assert resumed.resumed_from == [2 * (step // 2)]
    assert [record["lr"] for record in resumed.history] == [1e-12, 1e-12, 5e-13, 5e-13, 2.5e-13]


def test_ranks_on_a_plateau_lower_the_rate_alike_and_resume(spec, tmp_path):
    whole, broken = (spec(storage=tmp_path / name, **PLATEAU) for name in ("whole", "broken"))
    assert train_in_ranks(whole, 2) == [0, 0]
    assert train_in_ranks(broken, 2, 21, 1)[1] == -9
    assert train_in_ranks(broken, 2) == [0, 0]
    one, other = Outcome.load(whole.run_dir), Outcome.load(broken.run_dir)
    assert other.resumed_from
    assert other.weights_sha256 == one.weights_sha256
    assert timeless(other) == timeless(one)
    assert [record["lr"] for record in one.history] == [1e-12, 1e-12, 5e-13, 5e-13, 2.5e-13]
