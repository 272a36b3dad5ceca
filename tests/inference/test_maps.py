"""The heatmap view: light where the maps have it, in the side's colour, and systems that have nothing to show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from pose.cli import app
from pose.config import CropParams
from pose.config_loading import load
from pose.errors import ConfigError
from pose.inference import maps as viewing
from pose.inference.draw import SIDE_COLOURS
from pose.inference.maps import DIMMED, Heat, glow, looker, scene_seen, seen
from pose.inference.predictor import Predictor
from pose.people import People
from pose.skeleton import COCO17, Skeleton
from pose.systems import create

LEFT, RIGHT, NOSE = COCO17.index("left_wrist"), COCO17.index("right_knee"), COCO17.index("nose")


def one_cell(joint: int, column: int, row: int) -> np.ndarray:
    """[K, 16, 12] with one cell at 1."""
    maps = np.zeros((COCO17.size, 16, 12), np.float32)
    maps[joint, row, column] = 1
    return maps


def brightest(picture: Image.Image, base: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Where a picture differs most from its dimmed base (x, y; centre of the plateau), and its colour there."""
    difference = np.abs(np.asarray(picture, float) - np.asarray(base, float) * DIMMED).sum(axis=2)
    rows, columns = np.nonzero(difference > 0.95 * difference.max())
    place = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
    return place, np.asarray(picture)[int(place[1]), int(place[0])].astype(int)


@pytest.mark.parametrize(("joint", "side"), [(LEFT, "left"), (RIGHT, "right"), (NOSE, "middle")])
def test_light_is_where_the_cell_is(joint: int, side: str) -> None:
    base = Image.new("RGB", (300, 200), (120, 120, 120))
    to_original = np.array([[2.0, 0, 30], [0, 2.0, -20]])  # input 48 x 64 shows x 30..126, y -20..108
    heat = Heat(one_cell(joint, 3, 9), to_original, (48, 64))
    place, colour = brightest(glow(base, [heat], COCO17), base)
    # The cell's centre is at 14, 38 of the input: cells have 4 px.
    np.testing.assert_allclose(place, [2 * 14 + 30, 2 * 38 - 20], atol=1.0)
    assert np.abs(colour - SIDE_COLOURS[side]).max() < 25


def test_nobody_leaves_a_dimmed_picture_and_outside_nothing_breaks() -> None:
    base = Image.new("RGB", (60, 40), (200, 100, 50))
    outside = Heat(one_cell(LEFT, 3, 3), np.array([[1.0, 0, 500], [0, 1.0, 0]]), (48, 64))
    for heats in ([], [outside]):
        picture = np.asarray(glow(base, heats, COCO17))
        assert picture.tolist() == np.tile(np.round(np.array([200, 100, 50]) * DIMMED), (40, 60, 1)).tolist()


def test_maps_of_each_box_lie_in_it() -> None:
    model = Predictor("none", lambda images: None, COCO17, CropParams(view="person", size=96, margin=2.0), (48, 64))
    boxes = np.array([[20, 20, 60, 80], [120, 60, 180, 120]], np.float32)
    k = np.zeros((2, COCO17.size), np.float32)
    sizes = np.full((2, 2), 200, np.float32)
    people = People(np.zeros(2, np.int64), sizes, np.zeros((2, COCO17.size, 2), np.float32), k, k, boxes, k[:, 0])
    middle = np.stack([one_cell(LEFT, 5, 7) + one_cell(LEFT, 6, 8)] * 2)
    base = Image.new("RGB", (200, 200))
    picture = np.asarray(seen(model, lambda images: middle[: len(images)], base, people)).sum(axis=2)
    for x0, y0, x1, y1 in boxes.astype(int).tolist():
        assert picture[(y0 + y1) // 2, (x0 + x1) // 2] > 200
    assert picture[:15].max() == picture[150:].max() == 0


class Showing:
    """A system that shows the input's red channel, once normalised, as every joint's map."""

    skeleton: Skeleton = COCO17
    network = staticmethod(lambda images: images[:, :1])

    def belief_maps(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs.expand(-1, COCO17.size, -1, -1) * 9


def test_maps_stay_within_zero_and_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewing, "trained", lambda folder: type("Trained", (), {"system": Showing(), "name": "x"})())
    shown = looker(Path("x"))(np.array([0, 255], np.uint8)[None, None, None].repeat(3, axis=1))
    assert shown.shape == (1, COCO17.size, 1, 2)
    assert (shown[..., 0] == 0).all()
    assert (shown[..., 1] == 1).all()


@pytest.mark.parametrize("asked", [looker, scene_seen])
def test_system_without_maps_is_named(monkeypatch: pytest.MonkeyPatch, asked: Callable) -> None:
    monkeypatch.setattr(viewing, "trained", lambda folder: type("Trained", (), {"system": object(), "name": "vgg"})())
    with pytest.raises(ConfigError, match=r"vgg .* has no heatmaps to show"):
        asked(Path("x"))


def test_the_command_shows_what_a_scene_systems_network_sees_in_the_whole_picture(tmp_path: Path) -> None:
    whole = load().systems["deepcut"]
    small = {"input_size": [64, 48], "depth": 18, "width": 8}
    system = create("deepcut", type(whole).model_validate({**whole.model_dump(), **small}), COCO17)
    detector, chance = system.network, torch.full((COCO17.size, 1, 1), 1e-4)
    chance[LEFT] = 0.19  # nobody is made of what is below candidates.floor
    with torch.no_grad():
        detector.calibration.factor.zero_()
        detector.calibration.shift.copy_(chance.logit())
    save_file(system.network.state_dict(), tmp_path / "model.safetensors")
    described = {
        "system": "deepcut", "view": "scene", "params": system.params.model_dump(mode="json"), "skeleton": "coco17",
        "input_size": system.params.input_size, "crop": {"view": "person", "size": 64},
    }  # fmt: skip
    (tmp_path / "model.json").write_text(json.dumps(described))
    Image.new("RGB", (128, 80), (200, 100, 50)).save(tmp_path / "a.png")
    words = ["predict", str(tmp_path / "a.png"), "--model", str(tmp_path), "--out", str(tmp_path / "out"), "--maps"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert json.loads((tmp_path / "out/predictions.json").read_text()) == []
    with Image.open(tmp_path / "out/a.png.pose.jpg") as shown:
        pixels = np.asarray(shown)
        dimmed = DIMMED * np.array([200, 100, 50])
        wanted = dimmed + 0.19 * (np.array(SIDE_COLOURS["left"]) - dimmed)
        # Light fades in the half cell along the edges; overlays of small pictures are enlarged.
        height, width = pixels.shape[:2]
        inner = pixels[height // 4 : -height // 4, width // 4 : -width // 4]
        np.testing.assert_allclose(inner.mean(axis=(0, 1)), wanted, atol=2)
