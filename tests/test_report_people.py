"""The report of a run with a top-down system, a scene system and a detector."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pose.config import CropParams, EvaluationParams
from pose.data.shards import DatasetInfo
from pose.decoding.settling import BY_OKS
from pose.evaluate import evaluate, with_oks
from pose.evaluate_oks import box_figures
from pose.evaluation import Evaluation
from pose.metrics.truth import Truth, read
from pose.people import People
from pose.protocol import Protocol
from pose.report import Entry, build, results_table
from pose.report.page import _accuracy_rows, verdict
from pose.report.sections import diagnosis_tables, headline, protocol_rows, slice_tables
from pose.skeleton import LSP14

PARAMS = EvaluationParams(split="test", resamples=60, confidence=0.95, gallery=2)
PROTOCOL = Protocol("fixture", "da7a" * 16, "test", "truth", False, LSP14.oks_sigmas, "oks 0.9")


def crowd() -> tuple[People, Truth]:
    """Two people in each of fifteen images."""
    generator = np.random.default_rng(2)
    n = 30
    joints = generator.random((n, 14, 2)) * 90 + np.tile([[0, 0], [150, 20]], (15, 1))[:, None] + 10
    boxes = np.concatenate([joints.min(axis=1), joints.max(axis=1)], axis=1)
    image_ids = np.repeat(np.arange(15), 2)
    ones = np.ones((n, 14), np.float32)
    people = People(
        image_ids, np.tile(np.float32([280, 140]), (n, 1)), joints.astype(np.float32), ones, ones,
        boxes.astype(np.float32), np.ones(n, np.float32),
    )  # fmt: skip
    annotations = [
        {"id": i + 1, "image_id": int(image_ids[i]), "category_id": 1, "num_keypoints": 14, "iscrowd": 0,
         "area": float((boxes[i, 2:] - boxes[i, :2]).prod()),
         "bbox": [*boxes[i, :2].tolist(), *(boxes[i, 2:] - boxes[i, :2]).tolist()],
         "keypoints": np.concatenate([joints[i], np.full((14, 1), 2)], axis=1).ravel().tolist()}
        for i in range(n)
    ]  # fmt: skip
    images = [{"id": number, "width": 280, "height": 140} for number in range(15)]
    return people, read({"images": images, "annotations": annotations}, LSP14)


def info(people: People) -> DatasetInfo:
    return DatasetInfo(
        name="fixture", skeleton="lsp14", crop=CropParams(view="person", size=64), counts={"test": 30},
        images={"test": 15}, excluded=0, findings={}, mean_pose=np.full((14, 2), 0.5),
        mean_pose_crop=np.full((14, 2), 32.0), presence_rate=np.full(14, 0.9),
    )  # fmt: skip


def noisy(people: People, spread: float) -> People:
    generator = np.random.default_rng(7)
    moved = people.keypoints + generator.normal(0, spread, people.keypoints.shape)
    return replace(people, keypoints=moved.astype(np.float32))


def in_true_boxes(entry: Entry) -> Entry:
    """The same where nobody detected boxes for it."""
    assert entry.evaluation is not None
    metrics = {name: value for name, value in entry.evaluation.metrics.items() if not name.endswith("_detected")}
    protocols = {"": entry.evaluation.protocols[""]}
    return replace(entry, evaluation=replace(entry.evaluation, metrics=metrics, protocols=protocols))


def printed(entries: list[Entry]) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(results_table(entries))
    return console.export_text()


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    people, truth = crowd()
    top_down = evaluate(noisy(people, 4), people, LSP14, PARAMS, info(people), presence_head=False)
    settled = BY_OKS.people(replace(noisy(people, 4), person_scores=np.ones(len(people), np.float32)), LSP14)
    top_down = with_oks(top_down, settled, truth, LSP14, PARAMS, PROTOCOL)
    detected = replace(PROTOCOL, boxes="detected 0123456789ab")
    top_down = with_oks(
        top_down, noisy(people, 4).select(np.arange(1, 30)), truth, LSP14, PARAMS, detected, "_detected"
    )
    top_down = replace(
        top_down, baselines=top_down.baselines | {"mean_pose": top_down.baselines["mean_pose"] | {"oks_ap": 0.01}}
    )
    metrics, intervals, ranking = box_figures(people, truth, PARAMS)
    boxes = Evaluation(
        split="test", dataset="fixture", people=30, image_ids=np.arange(15), confidence=0.95, resamples=60,
        joints=LSP14.joints, limbs=(), metrics=metrics, intervals=intervals, baselines={}, per_joint={},
        per_joint_intervals={}, per_limb={}, curves={}, per_image={}, not_applicable=("pck_image_12",),
        rankings={"box_ap": ranking}, protocols={"": replace(PROTOCOL, boxes="none", nms="none")},
    )  # fmt: skip
    scene = with_oks(boxes, noisy(people, 7), truth, LSP14, PARAMS, boxes.protocols[""])
    scene = with_oks(scene, noisy(people, 7), truth, LSP14, PARAMS, boxes.protocols[""], "_detected")
    common = {"truth": people, "history": [], "latency_ms": 2.0, "images_per_second": 10.0}
    return [
        Entry("detector", "Detector", evaluation=boxes, predictions=people, **common),
        Entry("scene", "Scene", evaluation=scene, predictions=noisy(people, 7), **common),
        Entry("top_down", "Top-down", evaluation=top_down, predictions=noisy(people, 4), **common),
        Entry("broken", "Broken", failure="no memory"),
    ]


def test_runs_with_boxes_are_ranked_by_average_precision_and_detectors_alone_by_theirs(entries: list[Entry]):
    assert headline(entries) == "oks_ap_detected"
    assert headline([entries[0], in_true_boxes(entries[2])]) == "oks_ap"
    assert headline(entries[:1]) == "box_ap"
    assert headline(entries[3:]) == "pck_image_12"
    whole = replace(in_true_boxes(entries[2]).evaluation, protocols={"": replace(PROTOCOL, boxes="none")})
    assert headline([replace(entries[2], evaluation=whole), entries[0]]) == "pck_image_12"


def test_the_page_shows_everybody_with_slices_diagnosis_and_protocol(entries: list[Entry], tmp_path: Path):
    page = build(entries, tmp_path / "report.html", title="People", info=info(crowd()[0]), gallery=1).read_text()
    for text in ("OKS AP, end to end", "box AP", "crowding (box IoU): below 0.1", "duplicate", PROTOCOL.id,
                 "detected 0123456789ab", "What errors cost, detected boxes, or none",
                 "ms for one picture, of top-down systems one crop", "Errors per joint"):  # fmt: skip
        assert text in page, text
    slices, diagnosis = slice_tables(entries), diagnosis_tables(entries)
    assert [[entry.name for entry in table["entries"]] for table in slices] == [["scene", "top_down"]] * 2
    assert [row["people"] for row in slices[0]["rows"] if row["kind"] == "truncation"] == [30]
    missing = {row["name"]: row["cells"][1][1] for row in diagnosis[1]["rows"]}
    assert missing["not found"] == 1
    assert [row["protocol"].boxes for row in protocol_rows(entries)] == [
        "none", "none", "none", "truth", "detected 0123456789ab",
    ]  # fmt: skip


def test_the_verdict_compares_end_to_end(entries: list[Entry]):
    said = verdict(entries)
    assert said[0].startswith("top_down reaches an end-to-end average precision of")
    assert "a mean pose that looks at nothing reaches 1.0 % in true boxes" in said[0]
    assert said[1].startswith("It leads scene by ")
    other = replace(entries[1].evaluation, protocols={"_detected": replace(PROTOCOL, boxes="detected ba9876543210")})
    apart = verdict([replace(entries[1], evaluation=other), entries[2]])
    assert "another protocol (detected ba9876543210 boxes, detected 0123456789ab here)" in apart[1]


def test_the_table_leads_with_the_end_to_end_figure(entries: list[Entry]):
    named = [replace(in_true_boxes(entries[2]), name="undetected"), *entries[:2],
             replace(entries[2], name="simple_baseline"), entries[3]]  # fmt: skip
    table = results_table(named)
    titles = ["architecture", "end to end", "AP50", "true boxes", "box AP", "ms", "version", "outcome"]
    assert [column.header for column in table.columns] == titles
    rows = [[str(cell).split("\n") for cell in row] for row in zip(*(c.cells for c in table.columns), strict=True)]
    assert [row[0] for row in rows] == [
        ["simple_baseline"], ["scene"], ["undetected"], ["detector"], ["broken"], ["mean pose"], ["always visible"],
    ]  # fmt: skip
    figures = [[cell[0] for cell in row[1:5]] for row in rows]
    top_down, scene = (
        {name: f"{100 * value:.1f}" for name, value in entries[n].evaluation.metrics.items()} for n in (2, 1)
    )
    assert figures[0] == [top_down["oks_ap_detected"], top_down["oks_ap50_detected"], top_down["oks_ap"], "n/a"]
    assert figures[1] == [scene["oks_ap"], scene["oks_ap50"], "n/a", scene["box_ap"]]
    assert figures[2] == ["n/a", "n/a", top_down["oks_ap"], "n/a"]
    assert figures[3][:3] == ["n/a"] * 3
    assert figures[5] == ["–", "–", "1.0", "–"]
    assert [row[5][1:] for row in rows[:4]] == [["crop"], [], ["crop"], []]
    text = printed(named)
    assert "…" not in text, "it fits"
    assert "of one person's crop, without the detector" in " ".join(text.split())


def test_without_detections_true_boxes_lead_as_before(entries: list[Entry]):
    text = printed([entries[0], in_true_boxes(entries[2]), entries[3]])
    assert all(word in text for word in ("OKS AP", "box AP", "top_down", "failed"))
    assert "end to end" not in text


def test_the_page_does_not_hold_true_boxes_against_none(entries: list[Entry]):
    order = [entries[2], entries[1]]
    rows = {row["name"]: row["cells"] for row in _accuracy_rows(order, headline(entries))}
    assert next(iter(rows)) == "oks_ap_detected"
    assert [cell["text"] == "n/a" for cell in rows["oks_ap"]] == [False, True]
    assert [cell["text"] == "n/a" for cell in rows["oks_ap_detected"]] == [False, False]


def test_a_run_of_a_detector_alone_has_a_page(entries: list[Entry], tmp_path: Path):
    page = build(entries[:1], tmp_path / "report.html", title="Boxes", info=info(crowd()[0]), gallery=1).read_text()
    assert "reaches an average precision of 100.0 % on boxes" in page
