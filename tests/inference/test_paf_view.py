"""Pictures of OpenPose's steps: light, arrows and people are where the maps have them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from pose.cli import app
from pose.config_loading import load
from pose.decoding.grouping import group
from pose.errors import ConfigError
from pose.inference import paf_view, scene_model
from pose.inference.draw import SIDE_COLOURS
from pose.inference.frames import find
from pose.inference.paf_view import GAP, Steps, arrows, linked, lit, looker, seen, sheet, sheets
from pose.inference.pipelines import EndToEnd
from pose.inference.video import Video
from pose.inference.weights import trained
from pose.layers.paf import Layout, confidence_targets, field_targets
from pose.people import People
from pose.skeleton import LSP14
from pose.systems import create

SIZE = (160, 128)
TINY = {
    "input_size": (80, 64), "trunk": [4, 6, 8], "features": [6, 6], "recipe": "paper",
    "two_branch": {"stages": 2, "first": [6, 6], "later": 6, "kernel": 3},
}  # fmt: skip


def steps(keypoints: np.ndarray) -> Steps:
    """What a perfect network makes of one person with joints [14, 2] in px of a picture twice the input's size."""
    layout, rules, cells = Layout.of(LSP14), load().systems["openpose"].grouping, (20, 16)
    places = torch.from_numpy(keypoints.astype(np.float32))[None, None] / 8
    known = torch.ones(1, 1, 14, dtype=torch.bool)
    heats = confidence_targets(places, known, cells, 0.9)[0, :-1].numpy()
    fields = field_targets(places, known, layout.limbs, cells, 1.0)[0].numpy()
    grouping = group(heats, fields, layout.limbs, layout.assembly, 0.9, rules)
    count = len(grouping.groups.scores)
    people = People(
        image_ids=np.zeros(count, np.int64),
        image_sizes=np.tile(np.float32(SIZE), (count, 1)),
        keypoints=grouping.keypoints * 8,
        scores=grouping.confidences,
        presence=grouping.confidences,
        boxes=np.tile(np.float32([0, 0, *SIZE]), (count, 1)),
        person_scores=grouping.groups.scores,
    )
    return Steps(heats, fields, grouping, people, layout, np.array([[2.0, 0, 0], [0, 2.0, 0]]), (80, 64))


@pytest.fixture
def person() -> np.ndarray:
    """Joints of somebody who stands in the middle of the picture, right side at the left."""
    points = {
        "ankle": (16, 112), "knee": (14, 92), "hip": (12, 70), "wrist": (38, 70), "elbow": (32, 52),
        "shoulder": (20, 34),
    }  # fmt: skip
    keypoints = np.zeros((14, 2))
    for k, name in enumerate(LSP14.joints):
        if name in ("neck", "head_top"):
            keypoints[k] = (80, 30 if name == "neck" else 10)
        else:
            side, part = name.split("_")
            x, y = points[part]
            keypoints[k] = (80 + (x if side == "left" else -x), y)
    return keypoints


def change(picture: Image.Image, base: Image.Image) -> np.ndarray:
    """[h, w], how much a pixel was changed."""
    return np.abs(np.asarray(picture, float) - np.asarray(base, float)).sum(axis=2)


def test_arrows_lie_along_the_limbs_in_their_sides_colours(person: np.ndarray) -> None:
    base = Image.new("RGB", SIZE)
    picture = arrows(base, steps(person))
    changed = change(picture, base)
    knee, ankle = person[LSP14.index("left_knee")], person[LSP14.index("left_ankle")]
    x, y = ((knee + ankle) / 2).astype(int)
    assert changed[y - 6 : y + 6, x - 6 : x + 6].max() > 100
    patch = np.asarray(picture, int)[y - 6 : y + 6, x - 6 : x + 6].reshape(-1, 3)
    assert np.abs(patch - SIDE_COLOURS["left"]).sum(axis=1).min() < 60
    assert not changed[100:, :30].any()


def test_links_and_candidates_are_drawn_where_they_are(person: np.ndarray) -> None:
    base = Image.new("RGB", SIZE)
    shown = steps(person)
    picture = np.asarray(linked(base, shown), int)
    for k, name in enumerate(LSP14.joints):
        x, y = person[k].astype(int)
        side = name.split("_")[0] if name.split("_")[0] in SIDE_COLOURS else "middle"
        patch = picture[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3)
        assert np.abs(patch - SIDE_COLOURS[side]).sum(axis=1).min() < 60, name
    assert shown.at(np.array([[10.0, 8.0]])).tolist() == [[80.0, 64.0]]
    glowing = change(lit(base, shown), base)
    x, y = person[LSP14.index("head_top")].astype(int)
    assert glowing[y, x] > 300


def test_the_sheet_has_four_pictures_also_of_nobody(person: np.ndarray) -> None:
    base = Image.new("RGB", (960, 768), (60, 70, 80))
    for keypoints in (person, np.full((14, 2), -500.0)):
        shown = steps(keypoints)
        page = sheet(base, lambda image, shown=shown: shown)
        assert page.width == 2 * 960 + 3 * GAP
        assert page.height > 2 * 768
    small = sheet(Image.new("RGB", SIZE), lambda image: steps(person))
    assert small.width == 2 * paf_view.SMALLEST + 3 * GAP


def bundle(folder: Path, name: str, system) -> Path:
    folder.mkdir()
    save_file(system.network.state_dict(), folder / "model.safetensors")
    described = {
        "system": name, "view": system.view, "params": system.params.model_dump(mode="json"), "skeleton": "lsp14",
        "joints": list(LSP14.joints), "input_size": system.params.input_size,
        "crop": {"view": "image", "size": 64}, "versions": {},
    }  # fmt: skip
    (folder / "model.json").write_text(json.dumps(described))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle of a small OpenPose, without its graph."""
    whole = load().systems["openpose"]
    torch.manual_seed(0)
    system = create("openpose", type(whole).model_validate({**whole.model_dump(), **TINY}), LSP14)
    return bundle(tmp_path / "bundle", "openpose", system)


def test_a_trained_folder_is_looked_through(folder: Path) -> None:
    image = Image.new("RGB", (100, 50), (200, 40, 10))
    shown = looker(folder)(image)
    assert shown.heats.shape == (14, 16, 20)
    assert shown.fields.shape == (28, 16, 20)
    # The picture is as wide as the input's 80 px.
    np.testing.assert_allclose(shown.to_original, [[1.25, 0, 0], [0, 1.25, 0]], atol=1e-5)
    assert seen(folder)(image, shown.people).size == image.size


def test_the_command_writes_the_steps_beside_the_overlay(
    folder: Path, tmp_path: Path, make_video, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = EndToEnd(scene_model._from_training(trained(folder), folder))
    monkeypatch.setattr("pose.inference.choice.choose", lambda *_: pipeline)
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    Image.new("RGB", (100, 50), (200, 40, 10)).save(photos / "a.png")
    make_video(photos / "b.mp4", 2)
    arguments = ["predict", str(photos), "--model", str(folder), "--out", str(out)]
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    plain = {path.name: path.read_bytes() for path in out.iterdir()}
    result = CliRunner().invoke(app, [*arguments, "--steps"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    steps = {"a.png.pose-steps.jpg", "b.mp4.pose-steps.mp4"}
    assert {path.name for path in out.iterdir()} == {*plain, *steps}
    assert (out / "a.png.pose.jpg").read_bytes() == plain["a.png.pose.jpg"]
    width = 2 * paf_view.SMALLEST + 3 * GAP
    with Image.open(out / "a.png.pose-steps.jpg") as shown:
        assert shown.width == width
    assert [frame.image.width for frame in Video(out / "b.mp4.pose-steps.mp4").frames()] == [width, width]
    with pytest.raises(ConfigError, match="names no picture"):
        find([str(out)])


def test_systems_without_fields_are_refused(tmp_path: Path) -> None:
    whole = load().systems["simple_baseline"]
    params = type(whole).model_validate({**whole.model_dump(), "depth": 18, "input_size": 32})
    system = create("simple_baseline", params, LSP14)
    with pytest.raises(ConfigError, match=r"--steps: simple_baseline .*other\) .*; leave --steps away"):
        sheets(bundle(tmp_path / "other", "simple_baseline", system))
