"""Checkpoints that were torn, altered, swapped or cut short by a full disk."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from pose.errors import TrainingError
from pose.training import checkpoints

OWNER = "f" * 64


def state(value: float) -> dict:
    return {"network": {"w": torch.full((1000,), value)}, "step": int(value)}


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, step, state(step), OWNER, keep=5)
    return tmp_path


def test_round_trip_and_retention(tmp_path):
    for step in range(1, 6):
        checkpoints.save(tmp_path, step, state(step), OWNER, keep=2)
    assert [path.name for path in checkpoints.complete(tmp_path)] == ["step-00000004", "step-00000005"]
    newest = checkpoints.latest(tmp_path, OWNER)
    assert torch.equal(checkpoints.load(newest, OWNER)["network"]["w"], torch.full((1000,), 5.0))


def test_a_repeated_step_replaces_itself(three):
    checkpoints.save(three, 3, state(30), OWNER, keep=5)
    assert checkpoints.load(three / "step-00000003", OWNER)["step"] == 30


def flip(path: Path) -> None:
    data = bytearray((path / "state.pt").read_bytes())
    data[len(data) // 2] ^= 0x40
    (path / "state.pt").write_bytes(data)


DAMAGE = {
    "flipped byte": flip,
    "cut": lambda path: (path / "state.pt").write_bytes((path / "state.pt").read_bytes()[:-100]),
    "empty": lambda path: (path / "state.pt").write_bytes(b""),
    "no state": lambda path: (path / "state.pt").unlink(),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "half a manifest": lambda path: (path / "manifest.json").write_text('{"files": '),
    "another training's": lambda path: (path / "manifest.json").write_text(
        json.dumps(json.loads((path / "manifest.json").read_text()) | {"fingerprint": "0" * 64})
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_passed_over_and_said(three, capsys, damage):
    damage(three / "step-00000003")
    assert checkpoints.latest(three, OWNER) == three / "step-00000002"
    assert "step-00000003" in capsys.readouterr().err
    with pytest.raises(TrainingError, match="step-00000003"):
        checkpoints.load(three / "step-00000003", OWNER)


def test_a_flipped_byte_would_load_without_the_manifest(three):
    """Why there is one: torch itself does not notice."""
    flip(three / "step-00000003")
    loaded = torch.load(three / "step-00000003" / "state.pt", weights_only=True)
    assert not torch.equal(loaded["network"]["w"], torch.full((1000,), 3.0))


def test_a_full_disk_keeps_the_previous_checkpoint(three, monkeypatch):
    real = checkpoints._HashingWriter.write

    def full(self, data):
        if self.written > 2000:
            self.failure = OSError(errno.ENOSPC, "No space left on device")
            raise self.failure
        return real(self, data)

    monkeypatch.setattr(checkpoints._HashingWriter, "write", full)
    with pytest.raises(TrainingError, match=r"step-00000004.*disk is full.*bytes written"):
        checkpoints.save(three, 4, state(4), OWNER, keep=1)
    monkeypatch.undo()
    assert [path.name for path in three.iterdir() if path.name.startswith(".")] == []
    assert checkpoints.latest(three, OWNER) == three / "step-00000003"
    assert len(checkpoints.complete(three)) == 3


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("made-by-a-checkpoint"),))


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints.save(tmp_path, 1, {"network": Malicious()}, OWNER, keep=1)
    with pytest.raises(Exception, match=r"weights_only|Unsupported|GLOBAL"):
        checkpoints.load(tmp_path / "step-00000001", OWNER)
    assert not Path("made-by-a-checkpoint").exists()
