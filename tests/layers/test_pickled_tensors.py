"""Checkpoints that pickle whole modules give their tensors, and execute nothing."""

import pickle
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from typing import ClassVar

import pytest
import torch
from torch import nn

from pose.errors import TrainingError
from pose.layers.inert_pickle import Call, Name, execute
from pose.layers.pickled_tensors import read_state


@pytest.fixture
def foreign():
    """Classes of a program that is there while a checkpoint is written and gone when it is read."""
    module = types.ModuleType("foreign_models")

    class Block(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.conv = nn.Conv2d(3, channels, 3, bias=False)
            self.bn = nn.BatchNorm2d(channels)
            self.act = nn.SiLU()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(Block(4), nn.Upsample(), Block(8))
            self.register_buffer("anchors", torch.arange(6.0).view(2, 3).t())
            self.register_buffer("scratch", torch.ones(2), persistent=False)
            self.tied = self.model[0].conv.weight
            self.yaml = {"nc": 18, "anchors": [[1, 2], [3, 4]]}
            self.names = {"a", "b"}

    for cls in (Block, Model):
        cls.__module__, cls.__qualname__ = "foreign_models", cls.__name__
        setattr(module, cls.__name__, cls)
    sys.modules["foreign_models"] = module
    yield module
    sys.modules.pop("foreign_models", None)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("entry", ["model", "ema"])
def test_a_pickled_module_gives_its_state_dict_without_its_classes(foreign, tmp_path, protocol, entry):
    torch.manual_seed(0)
    model = foreign.Model().half()
    wanted = model.state_dict()
    path = tmp_path / "release.pt"
    saved = {"epoch": -1, "best_fitness": None, "ema": None, "model": None, "date": "today"} | {entry: model}
    torch.save(saved, path, pickle_protocol=protocol)
    del sys.modules["foreign_models"]
    with pytest.raises((ModuleNotFoundError, AttributeError)):
        torch.load(path, weights_only=False)
    with pytest.raises(pickle.UnpicklingError), warnings.catch_warnings(action="ignore"):
        torch.load(path, weights_only=True)
    state = read_state(path)
    assert list(state) == list(wanted)
    assert "scratch" not in state
    for key, tensor in wanted.items():
        assert state[key].dtype == tensor.dtype
        assert torch.equal(state[key], tensor)


def test_a_plain_state_dict_is_read_too(tmp_path):
    wanted = OrderedDict(a=torch.arange(4), b=nn.Parameter(torch.rand(2, 3)), c=torch.zeros(0, 3))
    torch.save({"model": wanted}, tmp_path / "plain.pt")
    state = read_state(tmp_path / "plain.pt")
    assert list(state) == ["a", "b", "c"]
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)


class Weapon:
    """Runs when an ordinary reader looks at it."""

    fired: ClassVar[list[str]] = []

    def __reduce__(self):
        return (Weapon.fired.append, ("bang",))


def test_what_a_file_asks_for_is_written_down_and_not_done(tmp_path):
    path = tmp_path / "hostile.pt"
    torch.save({"extra": Weapon(), "model": {"a": torch.ones(3)}}, path)
    assert read_state(path)["a"].tolist() == [1, 1, 1]
    assert Weapon.fired == []
    # The weapon itself is loaded.
    call = execute(pickle.dumps(Weapon(), protocol=2), path)
    assert isinstance(call, Call)
    pickle.loads(pickle.dumps(Weapon()))
    Weapon.fired.clear()


def test_names_are_not_imported(tmp_path):
    code = b"cthis_module_is_not\nthere\n."
    assert execute(code, tmp_path) == Name("this_module_is_not", "there")


@pytest.mark.parametrize(
    ("code", "match"),
    [
        (b"\x80\x02(ios\nsystem\n.", "instruction INST at byte 3"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x02}(K\x01K\x02", "damaged|ends before"),
        (b"\x80\x02R.", "damaged"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02t.", "damaged"),
        (b"", "damaged|ends before"),
    ],
)
def test_unknown_and_broken_instructions_are_refused(tmp_path, code, match):
    with pytest.raises(TrainingError, match=match):
        execute(code, tmp_path / "x.pt")


def test_files_that_are_no_archive_are_refused_by_name(tmp_path):
    legacy = tmp_path / "legacy.pt"
    torch.save({"model": {"a": torch.ones(1)}}, legacy, _use_new_zipfile_serialization=False)
    with pytest.raises(TrainingError, match=r"legacy\.pt cannot be read as a torch archive.*before torch 1\.6"):
        read_state(legacy)
    with pytest.raises(TrainingError, match=r"absent\.pt cannot be read"):
        read_state(tmp_path / "absent.pt")
    torch.save({"optimizer": 3}, tmp_path / "other.pt")
    with pytest.raises(TrainingError, match=r"other\.pt has no module and no state_dict under 'ema' or 'model'"):
        read_state(tmp_path / "other.pt")


def test_tensors_beyond_their_data_are_refused(tmp_path):
    torch.save({"model": {"a": torch.arange(1000.0)}}, tmp_path / "whole.pt")
    with zipfile.ZipFile(tmp_path / "whole.pt") as whole, zipfile.ZipFile(tmp_path / "short.pt", "w") as short:
        for name in whole.namelist():
            data = whole.read(name)
            short.writestr(name, data[:400] if name.endswith("data/0") else data)
    with pytest.raises(TrainingError, match=r"short\.pt: a tensor in it cannot be read \(it needs 1000 values of 0"):
        read_state(tmp_path / "short.pt")


@pytest.mark.parametrize(
    "model",
    [
        b"}X\x01\x00\x00\x00actorch._utils\n_rebuild_parameter\n)Rs",
        b"ccollections\nOrderedDict\nK\x05\x85R",
        b"cmodels\nM\n)\x81}(X\x08\x00\x00\x00_modules}X\x1b\x00\x00\x00_non_persistent_buffers_setK\x03"
        b"X\x08\x00\x00\x00_buffers}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n)Rsub",
    ],
    ids=["parameter of nothing", "dictionary of a number", "buffers left out by a number"],
)
def test_files_that_torch_would_not_write_are_refused_by_name(tmp_path, model):
    with zipfile.ZipFile(tmp_path / "odd.pt", "w") as archive:
        archive.writestr("odd/data.pkl", b"\x80\x02}X\x05\x00\x00\x00model" + model + b"s.")
    with pytest.raises(TrainingError, match=r"odd\.pt is damaged or was not written by torch|odd\.pt has no module"):
        read_state(tmp_path / "odd.pt")


def test_modules_without_end_are_refused(tmp_path):
    """A module that is its own child twice over is a few bytes and 2^100 modules."""
    one = b"cmodels\nM\n)\x81q\x00}(X\x08\x00\x00\x00_modules}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00uub"
    code = b"\x80\x02}(X\x05\x00\x00\x00model" + one + b"u."
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w") as archive:
        archive.writestr("bomb/data.pkl", code)
    with pytest.raises(TrainingError, match="made to keep its reader busy"):
        read_state(tmp_path / "bomb.pt")
