from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

from pose import config_loading
from pose.cli import app
from pose.config import CropParams, EvaluationParams, PromotionParams
from pose.data.crops import crop_affine, extract
from pose.data.scenes import SceneRow, fit, mask_shape, write_scenes
from pose.data.shards import DatasetInfo, Row, describe, seal, write_shards
from pose.errors import ConfigError, DataError
from pose.evaluate import evaluate_system, protocol_of
from pose.evaluation import Evaluation
from pose.people import People
from pose.registry.promotion import compare, same_images
from pose.skeleton import COCO17, LSP14
from pose.systems import SYSTEMS, create
from pose.systems.base import Card, Joints, System

PARAMS = EvaluationParams(split="test", resamples=60, confidence=0.95, gallery=2)
CROP = CropParams(view="person", size=64, margin=2.0)
OFFSETS = np.stack([np.linspace(-14, 14, 14), np.linspace(-10, 10, 14)[::-1]], axis=1)
"""Joints of everybody, px around the disc that marks the person."""


def picture(size: tuple[int, int], centres: np.ndarray) -> Image.Image:
    y, x = np.mgrid[0 : size[1], 0 : size[0]] + 0.5
    pixels = np.full((size[1], size[0]), 20.0)
    for cx, cy in centres:
        pixels = np.maximum(pixels, 255 - 9 * np.hypot(x - cx, y - cy))
    return Image.fromarray(np.repeat(pixels[..., None], 3, axis=2).astype(np.uint8))


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=98)
    return buffer.getvalue()


def prepared(folder: Path, counts: list[int]) -> Path:
    """So many people in each image, a disc each, far apart; person and scene shards and all that belongs to them."""
    folder.mkdir()
    size, rows, scenes, annotations, images = (320, 240), [], [], [], []
    generator = np.random.default_rng(3)
    for number, count in enumerate(counts):
        centres = np.array([(60, 60), (250, 70), (160, 180)])[:count] + generator.uniform(-8, 8, (count, 2))
        whole = picture(size, centres)
        joints = centres[:, None] + OFFSETS
        boxes = np.concatenate([centres - 25, centres + 25], axis=1)
        ids = [100 * number + n + 1 for n in range(count)]
        visibility = np.full(14, 2)
        for n in range(count):
            affine = crop_affine(CROP, boxes[n], size)
            rows.append(
                Row(jpeg(extract(whole, affine, CROP.size)), f"{number}.jpg", number, ids[n], size, boxes[n], joints[n],
                    visibility, affine)
            )  # fmt: skip
            triples = np.concatenate([joints[n], visibility[:, None]], axis=1)
            annotations.append({
                "id": ids[n], "image_id": number, "category_id": 1, "iscrowd": 0, "area": 2500.0, "num_keypoints": 14,
                "bbox": [*boxes[n, :2].tolist(), 50.0, 50.0], "keypoints": triples.ravel().tolist(),
            })  # fmt: skip
        images.append({"id": number, "width": size[0], "height": size[1]})
        triples = np.concatenate([joints, np.full((count, 14, 1), 2)], axis=2)
        stored = fit(size, 160)
        scenes.append(
            SceneRow(jpeg(whole.resize(stored)), f"{number}.jpg", number, size, np.array(ids), boxes, triples,
                     np.full(count, 2500.0), np.zeros(mask_shape(stored), bool))
        )  # fmt: skip
    write_shards(rows, folder, "test", 100, LSP14, CROP)
    write_scenes(scenes, folder, "test", 100, LSP14, 160)
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (folder / "test.json").write_text(json.dumps(coco))
    DatasetInfo(
        name="discs", skeleton="lsp14", crop=CROP, counts={"test": len(rows)}, images={"test": len(scenes)}, excluded=0,
        findings={}, mean_pose=np.full((14, 2), 0.5), mean_pose_crop=np.full((14, 2), 32.0), presence_rate=np.ones(14),
    ).save(folder)  # fmt: skip
    seal(folder)
    return folder


class Discs(System):
    """Finds the disc that a crop shows and puts the pose around it."""

    card = Card("discs", "this test", "none", "none")
    Params = None
    loss_terms = ("coordinates",)

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(input_size=(64, 64), padding=2.0), LSP14)

    def build(self) -> nn.Module:
        return nn.Conv2d(3, 1, 1)

    @property
    def groups(self) -> dict[str, list[nn.Module]]:
        return {"network": [self.network]}

    def forward(self, network, batch):
        return batch.images

    def loss(self, outputs, batch):
        return {"coordinates": outputs.sum()}

    def joints(self, outputs: torch.Tensor) -> Joints:
        weights = (outputs.mean(dim=1) - outputs.amin(dim=(1, 2, 3))[:, None, None]) ** 8
        places, total = torch.arange(64) + 0.5, weights.sum(dim=(1, 2))
        x, y = (weights * places).sum(dim=(1, 2)) / total, (weights * places[:, None]).sum(dim=(1, 2)) / total
        offsets = torch.from_numpy(OFFSETS).float() * 64 / 100  # a box of 50 px times 2 is 64 px wide
        keypoints = torch.stack([x, y], dim=1)[:, None] + offsets
        return Joints(keypoints, torch.full(keypoints.shape[:2], 0.5), torch.ones(keypoints.shape[:2]))


class Knowing(Discs):
    """A scene system that answers with the batch's own people, but for the last of an image with three."""

    view = "scene"

    def __init__(self, finds_joints: bool = True, misses_third: bool = False) -> None:
        super().__init__()
        self.finds_joints, self.misses_third = finds_joints, misses_third

    def decode(self, outputs, batch) -> People:
        found = batch.people.clone()
        if self.misses_third and found.shape[1] > 2:
            found[:, 2] = False
        image, slot = torch.nonzero(found, as_tuple=True)
        scale, shift = batch.to_original[image][:, :, :2], batch.to_original[image][:, :, 2]
        points = batch.keypoints[image, slot] @ scale.transpose(1, 2) + shift[:, None]
        corners = batch.boxes[image, slot].view(-1, 2, 2) @ scale.transpose(1, 2) + shift[:, None]
        n = len(image)
        zero = 1.0 if self.finds_joints else 0.0
        return People(
            batch.image_ids[image].numpy(), batch.image_sizes[image].numpy(), zero * points.numpy(),
            np.full((n, 14), zero, np.float32), np.full((n, 14), zero, np.float32), corners.reshape(-1, 4).numpy(),
            np.full(n, 0.9, np.float32),
        )  # fmt: skip


def reloaded(evaluation: Evaluation, folder: Path) -> Evaluation:
    evaluation.save(folder)
    return Evaluation.load(folder)


def test_poses_in_annotated_and_in_detected_boxes_stand_side_by_side(tmp_path: Path):
    folder = prepared(tmp_path / "discs", [1, 2, 3, 0, 2])
    truth = json.loads((folder / "test.json").read_text())["annotations"]
    # One person is not detected, one twice, one detection shows nobody.
    boxes = [(a["image_id"], a["bbox"], 0.9) for a in truth[1:]] + [(2, truth[-3]["bbox"], 0.8)]
    boxes.append((3, [100.0, 100.0, 50.0, 50.0], 0.3))
    detected = [{"image_id": i, "category_id": 1, "bbox": b, "score": s} for i, b, s in boxes]
    (tmp_path / "detections.json").write_text(json.dumps(detected))
    evaluation, predictions = evaluate_system(Discs(), folder, PARAMS, 4, tmp_path / "detections.json")
    assert len(predictions) == 8
    assert evaluation.metrics["oks_ap"] == pytest.approx(1)
    assert evaluation.metrics["pck_torso_02"] == 1
    assert evaluation.metrics["oks_ar_detected"] == pytest.approx(7 / 8)
    assert 0.8 < evaluation.metrics["oks_ap_detected"] < 0.9
    assert evaluation.diagnosis["_detected"].counts["not_found"] == 1
    ours, theirs = evaluation.protocol_of("oks_ap"), evaluation.protocol_of("oks_ap_detected")
    assert set(ours.differences(theirs)) == {"boxes"}
    assert (ours.boxes, ours.id == theirs.id) == ("truth", False)
    again = reloaded(evaluation, tmp_path / "saved")
    assert again.protocols == evaluation.protocols
    assert again.metrics == pytest.approx(evaluation.metrics, nan_ok=True)


def test_detections_of_other_images_are_refused(tmp_path: Path):
    folder = prepared(tmp_path / "discs", [1, 1])
    stray = [{"image_id": 99, "category_id": 1, "bbox": [1, 1, 20, 20], "score": 1.0}]
    (tmp_path / "detections.json").write_text(json.dumps(stray))
    with pytest.raises(DataError, match="99"):
        evaluate_system(Discs(), folder, PARAMS, 4, tmp_path / "detections.json")


def test_a_scene_system_is_measured_on_everybody(tmp_path: Path):
    folder = prepared(tmp_path / "discs", [1, 2, 3, 0, 2])
    evaluation, found = evaluate_system(Knowing(misses_third=True), folder, PARAMS, 2)
    assert len(found) == 7
    assert evaluation.metrics["oks_ar"] == pytest.approx(7 / 8)
    assert evaluation.metrics["box_ar"] == pytest.approx(7 / 8)
    assert set(evaluation.intervals) == set(evaluation.metrics)
    assert "pck_image_12" in evaluation.not_applicable
    assert evaluation.protocol_of("oks_ap").boxes == "none"
    again = reloaded(evaluation, tmp_path / "saved")
    assert np.array_equal(again.rankings["oks_ap"].right, evaluation.rankings["oks_ap"].right)
    assert [s.people for s in again.slices[""]] == [s.people for s in evaluation.slices[""]]


def test_what_a_scene_system_finds_is_its_end_to_end_answer(tmp_path: Path):
    folder = prepared(tmp_path / "discs", [1, 2, 3, 0, 2])
    evaluation, _ = evaluate_system(Knowing(misses_third=True), folder, PARAMS, 2)
    plain = {name for name in evaluation.metrics if name.startswith("oks_") and not name.endswith("_detected")}
    assert {"oks_ap", "oks_ap50", "oks_ar"} < plain
    for figures in (evaluation.metrics, evaluation.intervals):
        assert {name: figures[f"{name}_detected"] for name in plain} == {name: figures[name] for name in plain}
    assert not any(name.startswith(("box_", "mean_pose")) for name in evaluation.metrics if name.endswith("_detected"))
    again = reloaded(evaluation, tmp_path / "saved")
    assert [s.people for s in again.slices["_detected"]] == [s.people for s in again.slices[""]]
    assert again.diagnosis["_detected"].counts["not_found"] == 1

    truth = json.loads((folder / "test.json").read_text())["annotations"]
    detected = [{"image_id": a["image_id"], "category_id": 1, "bbox": a["bbox"], "score": 0.9} for a in truth]
    (tmp_path / "detections.json").write_text(json.dumps(detected))
    top_down, _ = evaluate_system(Discs(), folder, PARAMS, 4, tmp_path / "detections.json")
    params = PromotionParams(metric="oks_ap_detected", margin=0.0, resamples=60, confidence=0.95)
    assert same_images(top_down, evaluation, "oks_ap_detected")
    assert not same_images(top_down, evaluation, "oks_ap"), "one was given true boxes"
    difference, low, high = compare(top_down, again, params)
    expected = top_down.metrics["oks_ap_detected"] - evaluation.metrics["oks_ap"]
    assert low <= difference <= high
    assert difference == pytest.approx(expected)
    assert expected > 0


@pytest.mark.parametrize(("name", "key"), [("openpose", "scales"), ("kapao", "test_scales")])
def test_scales_that_a_system_looks_at_are_its_protocol(tmp_path: Path, name: str, key: str):
    folder = prepared(tmp_path / "discs", [1])
    params, told = config_loading.load().systems[name], []
    for scales in ([1], [1, 0.5]):
        system = Knowing()
        system.params = params.model_copy(update={key: scales})
        told.append(protocol_of(system, folder, "test", describe(folder)))
    single, several = told
    assert single.differences(several) == {"scales": ((1.0,), (0.5, 1.0))}
    assert single.id != several.id
    assert not single.differences(protocol_of(Knowing(), folder, "test", describe(folder))).keys() - {"flip_test"}


def test_protocols_say_how_detections_are_thinned_out(tmp_path: Path):
    folder, blocks = prepared(tmp_path / "discs", [1]), config_loading.load().systems

    def told(name: str, **changes):
        with torch.device("meta"):
            system = create(name, blocks[name].model_copy(update=changes), LSP14)
        return protocol_of(system, folder, "test", describe(folder))

    assert {name: told(name).nms for name in blocks if SYSTEMS[name].view == "scene"} == {
        "person_detector": "box IoU 0.5", "keypoint_rcnn": "box IoU 0.5", "kapao": "box IoU 0.65",
        "openpose": "grouping", "deepcut": "partition",
    }  # fmt: skip
    ours, theirs = told("keypoint_rcnn"), told("keypoint_rcnn", overlap=0.7)
    assert (theirs.nms, ours.id == theirs.id, ours.rivals(theirs)) == ("box IoU 0.7", False, True)
    assert told("simple_baseline").nms == "oks 0.9"
    assert told("simple_baseline", recipe="paper").nms == "oks 0.9, released"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch):
    """`pose evaluate` of an evaluation, by a profile that has systems."""

    def run(evaluation: Evaluation, *words: str) -> Result:
        monkeypatch.setattr("pose.commands.models.evaluate_folder", lambda *_: evaluation)
        return CliRunner().invoke(app, ["evaluate", "folder", "--profile", "crowd-cpu", *words], catch_exceptions=False)

    return run


def test_the_command_shows_slices_and_what_errors_cost(tmp_path: Path, command):
    folder = prepared(tmp_path / "discs", [1, 2, 3, 0, 2])
    evaluation, _ = evaluate_system(Knowing(misses_third=True), folder, PARAMS, 2)
    text = command(evaluation).stdout
    assert text.count("who is found, no boxes") == text.count("what errors cost, no boxes") == 1, "both are the same"
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    edge = next(s for s in evaluation.slices[""] if s.name == "inside the image")
    span = f"{edge.ar_interval[0]:.4f} to {edge.ar_interval[1]:.4f}"
    assert next(row for row in rows if "inside the image" in row)[2:] == [
        "8", f"{edge.ap:.4f}", f"{edge.ap_interval[0]:.4f} to {edge.ap_interval[1]:.4f}", f"{edge.ar:.4f}", span,
    ]  # fmt: skip
    gained = evaluation.diagnosis[""].gained["not_found"]
    assert next(row for row in rows if "not found" in row)[1:3] == [f"{gained:+.4f}", "1"]
    assert gained > 0

    read = json.loads(command(evaluation, "--json").stdout)
    assert read["oks_ap"]["value"] == evaluation.metrics["oks_ap"]
    assert [row["people"] for row in read["slices"]["_detected"]] == [s.people for s in evaluation.slices[""]]
    assert read["diagnosis"][""]["gained"] == evaluation.diagnosis[""].gained
    evaluation.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved/evaluation.json").read_text())
    assert {name: read[name] for name in evaluation.details()} == {name: saved[name] for name in evaluation.details()}


def test_a_detector_has_no_slices_to_show(tmp_path: Path, command):
    evaluation, _ = evaluate_system(Knowing(finds_joints=False), prepared(tmp_path / "discs", [1, 2]), PARAMS, 2)
    assert "who is found" not in command(evaluation).stdout
    assert json.loads(command(evaluation, "--json").stdout)["slices"] == {}


def test_the_command_says_where_detected_boxes_are_missing(tmp_path: Path, command):
    evaluation, _ = evaluate_system(Discs(), prepared(tmp_path / "discs", [1, 2]), PARAMS, 4)
    done = command(evaluation, "--json")
    assert done.stderr.count("--detections FILE") == 1
    read = json.loads(done.stdout)
    assert len(read["per_joint"]["pck_torso_02"]) == len(read["joints"]) == 14
    assert "who is found, annotated boxes" in command(evaluation).stdout
    both = replace(evaluation, protocols=evaluation.protocols | {"_detected": evaluation.protocols[""]})
    assert "--detections" not in command(both, "--json").stderr


def test_on_whole_images_nobody_needs_boxes(tmp_path: Path):
    folder = prepared(tmp_path / "discs", [1, 1])
    described = replace(describe(folder), crop=CropParams(view="image", size=64))
    described.save(folder)
    evaluation, _ = evaluate_system(Knowing(), folder, PARAMS, 2, tmp_path / "unread.json")
    assert "oks_ap" in evaluation.metrics
    assert not any(name.endswith("_detected") for name in evaluation.metrics)
    assert protocol_of(Discs(), folder, "test", describe(folder)).nms == "none"


def test_where_each_image_has_one_person_a_scene_system_has_the_single_person_figures_too(tmp_path: Path):
    folder = prepared(tmp_path / "discs", [1, 1, 1])
    evaluation, predictions = evaluate_system(Knowing(), folder, PARAMS, 2)
    assert len(predictions) == 3
    assert evaluation.metrics["pck_image_12"] == evaluation.metrics["box_ap"] == pytest.approx(1)
    assert evaluation.not_applicable[:1] == ("presence_accuracy",)


def test_a_detector_has_figures_of_boxes_alone(tmp_path: Path):
    folder = prepared(tmp_path / "discs", [1, 2, 3])
    evaluation, _ = evaluate_system(Knowing(finds_joints=False), folder, PARAMS, 2)
    assert set(evaluation.metrics) == {"box_ap", "box_ap50", "box_ap75", "box_ar"}
    assert evaluation.protocols[""].boxes == "none"


def test_a_person_not_found_is_a_miss_and_other_joints_are_refused(tmp_path: Path):
    folder = prepared(tmp_path / "discs", [1, 1, 1, 1])

    class Half(Knowing):
        def decode(self, outputs, batch):
            everybody = super().decode(outputs, batch)
            return everybody.select(everybody.image_ids % 2 == 0)

    evaluation, predictions = evaluate_system(Half(), folder, PARAMS, 4)
    assert evaluation.metrics["pck_image_12"] == 0.5
    assert evaluation.metrics["pcp_strict"] == 0.5
    assert predictions.scores[1].max() == 0
    wrong = Knowing()
    wrong.skeleton = COCO17
    with pytest.raises(ConfigError, match="predicts coco17 joints, discs is labelled with lsp14"):
        evaluate_system(wrong, folder, PARAMS)
