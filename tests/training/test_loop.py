"""The loop from end to end in one process: what it leaves, when it stops, whom it blames."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pose.training
from pose.config import ROOT
from pose.data.loader import Loader
from pose.errors import ConfigError, TrainingError
from pose.training import checkpoints, loop, stage
from pose.training.distributed import World, share
from pose.training.sampling import epoch_order, rank_order
from pose.training.spec import TrainingSpec

ALL = ["trunk", "presence", "coordinates"]
BOTH = {"presence": 0.1, "coordinates": 10.0}


def phase(epochs: int, train=ALL, losses=BOTH, **more) -> dict:
    return {"name": "only", "epochs": epochs, "train": train, "losses": losses} | more


def test_it_learns_and_leaves_everything(spec):
    outcome = pose.training.run(spec(phases=[phase(25)], system={"dropout": 0.0}, augment={}))
    assert outcome.epochs == 25
    assert outcome.metric == "val/pck_image_12"
    assert outcome.best_metric == max(record["val"]["pck_image_12"] for record in outcome.history)
    assert outcome.history[outcome.best_epoch - 1]["val"]["pck_image_12"] == outcome.best_metric
    assert outcome.best_metric > outcome.history[0]["val"]["pck_image_12"] + 0.2
    assert set(load_file(outcome.weights)) >= {"fc1.weight"}
    record = json.loads((outcome.run_dir / "history.jsonl").read_text().splitlines()[0])
    assert {"epoch", "phase", "lr", "train", "val", "images_per_second", "seconds"} <= set(record)


def test_a_finished_training_is_not_repeated(spec, monkeypatch):
    first = pose.training.run(spec())
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("trained again"))
    assert pose.training.run(spec()) == first


def test_altered_weights_are_not_handed_on(spec):
    outcome = pose.training.run(spec(phases=[phase(1)]))
    outcome.weights.write_bytes(outcome.weights.read_bytes()[:-1] + b"\x00\x01")
    with pytest.raises(TrainingError, match=r"model\.safetensors"):
        pose.training.run(spec(phases=[phase(1)]))


def test_frozen_groups_do_not_move(spec, monkeypatch):
    """The paper's second phase trains the coordinate head on top of the first phase's best weights, all else still."""
    seen = []
    real = stage.Stage.__init__

    def watching(self, system, *rest, **named):
        seen.append({name: tensor.clone() for name, tensor in system.network.state_dict().items()})
        real(self, system, *rest, **named)

    monkeypatch.setattr(stage.Stage, "__init__", watching)
    phases = [phase(1, ["trunk", "presence"], {"presence": 1.0}), phase(2, ["coordinates"], {"coordinates": 1.0})]
    weights = load_file(pose.training.run(spec(phases=phases)).weights)
    before_second = seen[1]
    moved = {name.split(".")[0] for name in weights if not torch.equal(weights[name], before_second[name])}
    assert moved == {"coordinates"}
    first_moved = {name.split(".")[0] for name in weights if not torch.equal(seen[0][name], before_second[name])}
    assert first_moved == {"features", "fc1", "presence"}


def test_accumulation_equals_one_batch(spec, tmp_path):
    """For a loss that is a mean over rows, without batch statistics, mean of halves = mean of the whole."""
    outcomes = []
    for parts in (1, 2, 3):
        s = spec(
            storage=tmp_path / str(parts), accumulate=parts, phases=[phase(1, losses={"presence": 1.0}, train=ALL[:2])],
            system={"batch_norm": False, "dropout": 0.0}, optimiser={"kind": "sgd", "lr": 0.05}, ema_decay=None,
        )  # fmt: skip
        outcomes.append(load_file(pose.training.run(s).weights))
    for other in outcomes[1:]:
        for name, tensor in outcomes[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6)


def test_one_step_equals_a_bare_loop(spec, dots):
    """Same rows, same numbers as ten lines of plain PyTorch."""
    from pose.data.augment import finish
    from pose.systems import create
    from pose.training.state import Run

    s = spec(phases=[phase(1)], clip_norm=None, ema_decay=None, optimiser={"kind": "sgd", "lr": 0.05, "momentum": 0.9})
    run = Run(s, World(device=torch.device("cpu")))
    machine = run.open_stage()
    twin = create(s.system, s.system_params, run.system.skeleton)
    twin.network.load_state_dict(run.network.state_dict())
    optimiser = torch.optim.SGD(twin.network.parameters(), lr=0.05, momentum=0.9)
    twin.network.train()
    rng = torch.get_rng_state()
    loop.train_steps(run, machine, run.batches(), lambda record, path: None)
    torch.set_rng_state(rng)
    order = epoch_order(100, s.params.seed, 0)
    loader = Loader(run.train_loader.split, 1)
    for step in range(6):
        rows = order[16 * step : 16 * step + 16]
        (batch,) = loader.batches(rows, 16, s.recipe.augment, s.params.seed, 0)
        batch = finish(batch, (24, 24), twin.skeleton)
        terms = twin.loss(twin.network(batch.images), batch)
        optimiser.param_groups[0]["lr"] = 0.05 * [0.25, 0.5, 0.75, 1.0, 0.75, 0.25][step]
        (0.1 * terms["presence"] + 10.0 * terms["coordinates"]).backward()
        optimiser.step()
        optimiser.zero_grad()
    for name, tensor in twin.network.state_dict().items():
        torch.testing.assert_close(run.network.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)


def test_early_stopping_keeps_the_best(spec):
    still = {"kind": "sgd", "lr": 1e-9}
    outcome = pose.training.run(spec(phases=[phase(9, patience=2)], optimiser=still, ema_decay=None))
    assert outcome.epochs == 3
    assert outcome.best_epoch == 1


def test_nan_names_the_culprits_and_stops_before_the_update(spec, monkeypatch):
    s = spec(storage=spec().storage / "nan", phases=[phase(3)])
    real, bad = Loader.batches, {1007, 1042}

    def poisoned(self, order, batch_size, augment, seed, epoch, start=0):
        for batch in real(self, order, batch_size, augment, seed, epoch, start):
            if epoch == 1:
                for row, image in enumerate(batch.image_ids.tolist()):
                    if image in bad:
                        batch.presence[row] = float("nan")
            yield batch

    monkeypatch.setattr(Loader, "batches", poisoned)
    with pytest.raises(TrainingError, match=r"image ids (1007|1042)") as raised:
        pose.training.run(s)
    assert "epoch 2" in str(raised.value)
    newest = checkpoints.latest(s.run_dir / "checkpoints", s.fingerprint)
    state = checkpoints.load(newest, s.fingerprint)
    assert all(torch.isfinite(t).all() for t in state["network"].values())
    assert not (s.run_dir / "outcome.json").exists()


def test_an_infinite_loss_with_finite_gradients_is_caught(spec, monkeypatch):
    from pose.systems.baseline1 import Baseline1

    real = Baseline1.loss
    monkeypatch.setattr(
        Baseline1, "loss", lambda self, o, b: {k: v + v.new_tensor(np.inf) for k, v in real(self, o, b).items()}
    )
    with pytest.raises(TrainingError, match="not finite"):
        pose.training.run(spec())


def test_disk_full_while_training(spec, monkeypatch):
    real = checkpoints.save

    def refusing(directory, step, *rest):
        if step >= 4:
            monkeypatch.setattr(
                checkpoints._HashingWriter, "write", lambda self, data: (_ for _ in ()).throw(OSError(28, "full"))
            )
        return real(directory, step, *rest)

    s = spec()
    monkeypatch.setattr(checkpoints, "save", refusing)
    with pytest.raises(TrainingError, match="step-00000004"):
        pose.training.run(s)
    monkeypatch.undo()
    assert pose.training.run(s).resumed_from == [2]


def test_a_group_without_a_loss_is_refused(spec):
    with pytest.raises(ConfigError, match=r"none of its losses \(coordinates\) depends on presence"):
        pose.training.run(spec(phases=[phase(1, ALL, {"coordinates": 1.0})]))


@pytest.mark.parametrize("training", [{"precision": "bf16"}, {"channels_last": False}, {"deterministic": False}])
def test_engine_switches(spec, training):
    outcome = pose.training.run(spec(training=training, phases=[phase(2)]))
    assert np.isfinite(outcome.history[-1]["train"]["loss"])


def test_shares_cover_each_batch_once():
    whole, count = rank_order(100, 16, 5, 2, World())
    assert count == 16
    assert len(set(whole.tolist())) == 96
    parts = [rank_order(100, 16, 5, 2, World(rank=r, size=3)) for r in range(3)]
    for step in range(6):
        rows = np.concatenate([order[step * n : (step + 1) * n] for order, n in parts])
        np.testing.assert_array_equal(rows, whole[step * 16 : step * 16 + 16])
    assert [n for _, n in parts] == [6, 5, 5]
    assert len(share(np.arange(20), World(rank=2, size=3))) == 6
    with pytest.raises(ConfigError, match="fewer workers"):
        rank_order(2, 16, 5, 2, World(size=3))


def test_fingerprint_knows_what_matters(spec):
    base = spec()
    same = [
        spec(storage=base.storage / "elsewhere"),
        spec(training={"checkpoint": {"every_steps": 99, "keep": 9}}),
        spec(training={"loader_threads": 7}),
    ]
    assert {s.fingerprint for s in same} == {base.fingerprint}
    other = [
        spec(seed=4), spec(batch_size=8), spec(training={"precision": "bf16"}), spec(system={"dropout": 0.3}),
        dataclasses.replace(base, data_hash="others"),
    ]  # fmt: skip
    assert len({base.fingerprint, *(s.fingerprint for s in other)}) == 6


def test_spec_survives_json(spec):
    s = spec()
    again = TrainingSpec.from_json(s.to_json())
    assert again == s
    assert again.fingerprint == s.fingerprint


def test_a_spec_from_other_code_keeps_its_name_but_is_not_trained(spec):
    value = json.loads(spec().to_json()) | {"recorded": "e" * 64}
    old = TrainingSpec.from_json(json.dumps(value))
    assert old.name == "baseline1-" + "e" * 12
    with pytest.raises(ConfigError, match="other code"):
        loop.train(old)


def test_the_loop_needs_none_of_the_orchestrators():
    blocked = "ray mlflow prefect dvc typer"
    code = (
        "import sys\n"
        f"for name in {blocked.split()!r}: sys.modules[name] = None\n"
        "import pose.training, pose.training.loop\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
