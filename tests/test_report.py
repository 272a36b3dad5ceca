from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pose.config import CropParams, EvaluationParams
from pose.data.shards import DatasetInfo
from pose.evaluate import evaluate
from pose.metrics import pck
from pose.people import People
from pose.report import Entry, build, results_table
from pose.report.page import duration, verdict
from pose.report.pictures import galleries, presence_pictures
from pose.skeleton import LSP14

PARAMS = EvaluationParams(split="test", resamples=100, confidence=0.95, gallery=2)
N = 24


@pytest.fixture(scope="module")
def truth() -> People:
    generator = np.random.default_rng(1)
    sizes = generator.integers(80, 300, (N, 2))
    labelled = generator.random((N, 14)) < 0.85
    keypoints = (0.2 + 0.6 * generator.random((N, 14, 2))) * sizes[:, None]
    return People(
        image_ids=np.arange(N) + 500, image_sizes=sizes.astype(np.float32),
        keypoints=np.where(labelled[..., None], keypoints, 0).astype(np.float32),
        scores=labelled.astype(np.float32), presence=labelled.astype(np.float32),
        boxes=np.concatenate([np.zeros((N, 2)), sizes], axis=1).astype(np.float32),
        person_scores=np.ones(N, np.float32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def info(truth: People) -> DatasetInfo:
    return DatasetInfo(
        name="fixture", skeleton="lsp14", crop=CropParams(view="image", size=64), counts={"train": 112, "test": N},
        images={"train": 110, "test": N}, excluded=3, findings={"outside_image": 8, "long_limb": 1565},
        mean_pose=np.full((14, 2), 0.5), mean_pose_crop=np.full((14, 2), 32.0), presence_rate=np.full(14, 0.85),
    )  # fmt: skip


def entry_of(name: str, noise: float, truth: People, info: DatasetInfo, *, head: bool = True, **fields) -> Entry:
    generator = np.random.default_rng(len(name))
    guess = np.clip(0.5 * truth.presence + 0.6 * generator.random((N, 14)), 0, 1) if head else np.ones((N, 14))
    predictions = replace(
        truth,
        keypoints=(truth.keypoints + generator.normal(0, noise, (N, 14, 2))).astype(np.float32),
        scores=np.ones_like(truth.scores),
        presence=guess.astype(np.float32),
    )

    def crop(row: int):
        width, height = truth.image_sizes[row]
        picture = Image.fromarray(np.full((64, 64, 3), 60 + row, np.uint8))
        return picture, np.array([[64 / width, 0, 0], [0, 64 / height, 0]])

    history = [
        {
            "epoch": epoch, "phase": "regression" if epoch > 2 else "classification", "lr": 0.1, "seconds": 2.0,
            "train": {"loss": 1 / epoch, "coordinates": 0.1 / epoch}, "images_per_second": 90.0,
            "val": {"loss": 1 / epoch, "coordinates": 0.1 / epoch, "pck_image_12": 0.1 * epoch},
        }
        for epoch in range(1, 6)
    ]  # fmt: skip
    evaluation = evaluate(predictions, truth, LSP14, PARAMS, info, presence_head=head)
    given = {
        "title": name.title(), "evaluation": evaluation, "predictions": predictions, "truth": truth, "crop": crop,
        "history": history, "training_seconds": 10.0, "images_per_second": 90.0, "parameters": 27_583_068,
        "model_bytes": 5_000_000, "latency_ms": 3.25, "throughput": 412.0, "version": f"pose-{name}/7",
        "lineage": {"git_commit": f"c0ffee-{name}", "seed": "20"}, "command": f"pose train {name}",
    }  # fmt: skip
    return Entry(name=name, **(given | fields))


@pytest.fixture(scope="module")
def entries(truth: People, info: DatasetInfo) -> list[Entry]:
    return [
        entry_of("alpha", 25, truth, info, promoted=False, reason="+0.1 points, at least -2"),
        entry_of("beta", 5, truth, info, promoted=True, champion_of="pose-x", reason="+3.1 points, at least 2.2"),
        entry_of("gamma", 12, truth, info, head=False, latency_ms=None, throughput=None, version=None),
        Entry("delta", "Delta", failure="the loss is <NaN> & gone"),
    ]


@pytest.fixture(scope="module")
def page(entries: list[Entry], info: DatasetInfo, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("report") / "nested" / "report.html"
    assert build(entries, out, title="A run & its report", info=info, gallery=2, command="pose train-all") == out
    return out.read_text(encoding="utf-8")


class Structure(HTMLParser):
    """Checks that tags close in order; collects ids, links, the cells of tables, and text."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.table: list[list[str]] | None = None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given[key] for key in ("src", "href", "xlink:href") if key in given]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.table = self.tables[given.get("id", "")] = []
        elif tag == "tr" and self.table is not None:
            self.table.append([])
        elif tag in ("td", "th") and self.table is not None:
            self.table[-1].append("")

    def handle_startendtag(self, tag, attributes):
        if tag in self.VOID:
            self.handle_starttag(tag, attributes)
        else:
            self.handle_starttag(tag, attributes)
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"line {self.getpos()[0]} closes {tag}"
        if tag == "table":
            self.table = None

    def handle_data(self, data):
        if self.table and self.table[-1] and {"td", "th"} & set(self.open):
            self.table[-1][-1] = f"{self.table[-1][-1]} {data.strip()}".strip()


def test_the_page_is_whole_and_needs_nothing_else(page: str):
    structure = Structure(page)
    assert structure.open == []
    assert len(structure.ids) == len(set(structure.ids))
    anchors = {link[1:] for link in structure.links if link.startswith("#")}
    assert anchors
    assert anchors <= set(structure.ids)
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in structure.links)
    assert "@import" not in page
    assert re.search(r"url\((?!#)", page) is None
    assert "A run &amp; its report" in page
    assert "the loss is &lt;NaN&gt; &amp; gone" in page


def test_tables_hold_the_evaluations_figures(page: str, entries: list[Entry]):
    tables = Structure(page).tables
    header, *rows = tables["accuracy"]
    assert header == ["metric", "beta", "gamma", "alpha", "mean pose", "always visible"]
    cells = {row[0]: row[1:] for row in rows}
    for column, entry in enumerate((entries[1], entries[2], entries[0])):
        metrics, (low, high) = entry.evaluation.metrics, entry.evaluation.intervals["pck_image_12"]
        expected = f"{100 * metrics['pck_image_12']:.1f} {100 * low:.1f} – {100 * high:.1f}"
        assert cells["PCK@1/12"][column] == expected
        assert cells["MSE ↓"][column].startswith(f"{metrics['mse_unit']:.4f}")
    assert cells["presence accuracy"][1] == "n/a no such output"
    assert cells["balanced accuracy"][-1] == "50.0"
    assert cells["PCK@1/12"][3] == f"{100 * entries[0].evaluation.baselines['mean_pose']['pck_image_12']:.1f}"
    ankle = {row[0]: row[1:] for row in tables["per-joint"]}["right ankle"]
    assert ankle[1] == f"{100 * entries[1].evaluation.per_joint['pck_image_12'][0]:.1f}"
    outcomes = {row[0]: row[1:] for row in tables["outcomes"][1:]}
    assert outcomes["beta"][-1].replace("\n", " ").split() == [
        "champion",
        "of",
        "pose-x",
        "+3.1",
        "points,",
        "at",
        "least",
        "2.2",
    ]
    assert outcomes["alpha"][-1] == "not promoted: +0.1 points, at least -2"
    assert outcomes["gamma"][2:4] == ["–", "–"]
    assert outcomes["delta"][-1] == "failed"
    assert outcomes["beta"][0] == "27,583,068"


def test_diagrams_show_every_architecture(page: str):
    diagrams = re.findall(r"<svg.*?</svg>", page, flags=re.S)
    assert len(diagrams) == 4
    for diagram in diagrams:
        for name in ("alpha", "beta", "gamma"):
            assert name in diagram
        assert "currentColor" in diagram
        assert "#010203" not in diagram
        assert "DejaVu" not in diagram


def test_audit_lineage_and_commands_are_told(page: str):
    for text in (
        "1,565",
        "long limb",
        "c0ffee-alpha",
        "pose train beta",
        "pose train-all",
        "says nothing about presence",
    ):
        assert text in page


def test_lineage_says_once_what_all_share(page: str):
    assert page.count("<code>20</code>") == 1
    assert page.count("<th>git commit</th>") == 1


def test_galleries_run_from_best_to_worst(entries: list[Entry]):
    entry = entries[0]
    mean = np.nanmean(pck.image_errors(entry.predictions, entry.truth), axis=1)
    chosen = galleries(entry, LSP14, 3)
    ids = {name: [int(re.search(r"image (\d+)", pair.caption).group(1)) - 500 for pair in pairs]
           for name, pairs in chosen.items()}  # fmt: skip
    assert ids["best"] == np.argsort(mean)[:3].tolist()
    assert ids["worst"] == np.argsort(mean)[::-1][:3].tolist()
    assert np.median(mean[ids["median"]]) == pytest.approx(np.median(mean), rel=0.1)


def test_pictures_have_the_originals_proportions_and_the_joints_where_they_are(entries: list[Entry], truth: People):
    pair = galleries(entries[1], LSP14, 1)["best"][0]
    row = int(re.search(r"image (\d+)", pair.caption).group(1)) - 500
    picture = Image.open(io.BytesIO(base64.b64decode(pair.truth.split(",")[1])))
    size = truth.image_sizes[row]
    assert picture.width / picture.height == pytest.approx(size[0] / size[1], rel=0.02)
    pixels = np.asarray(picture, dtype=float)
    drawn = np.abs(pixels - (60 + row)).max(axis=2) > 40
    for k in np.flatnonzero(truth.labelled[row]):
        x, y = (truth.keypoints[row, k] * picture.width / size[0]).astype(int)
        assert drawn[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3].any(), LSP14.joints[k]


def test_presence_pictures_only_where_there_is_a_presence_head(entries: list[Entry]):
    assert presence_pictures(entries[2], LSP14, 4) == []
    examples = presence_pictures(entries[0], LSP14, 4)
    right = [sum((joint.probability > 0.5) == joint.visible for joint in one.joints) for one in examples]
    assert len(examples) == 4
    assert min(right[:2]) > max(right[2:])


def test_verdict_names_leader_failures_and_what_does_not_beat_the_mean_pose(truth: People, info: DatasetInfo, entries):
    text = " ".join(verdict(entries))
    assert text.startswith("beta finds")
    assert "leads gamma by" in text
    assert "beta is the champion of pose-x." in text
    assert "or the first: beta." in text
    assert "Failed: delta." in text
    assert "Not clearly above" not in text
    hopeless = entry_of("hopeless", 300, truth, info)
    assert "Not clearly above the mean pose: hopeless." in verdict([*entries, hopeless])
    assert verdict([entries[3]]) == ["No architecture finished: delta."]


def test_a_run_in_which_everything_failed_still_has_a_page(entries: list[Entry], info: DatasetInfo, tmp_path: Path):
    text = build(entries[3:], tmp_path / "report.html", title="x", info=info, gallery=2).read_text(encoding="utf-8")
    assert Structure(text).open == []
    assert "delta failed" in text


def test_terminal_table_fits_and_tells_all(entries: list[Entry]):
    console = Console(width=100, file=io.StringIO())
    console.print(results_table(entries))
    lines = console.file.getvalue().splitlines()
    text = "\n".join(lines)
    assert max(len(line) for line in lines) <= 100
    assert "…" not in text
    rows = [line.split() for line in lines]
    order = [row[0] for row in rows if row and row[0] in ("alpha", "beta", "gamma", "delta")]
    assert order[:4] == ["beta", "gamma", "alpha", "delta"]
    beta = entries[1].evaluation
    assert next(row for row in rows if row[:1] == ["beta"])[1] == f"{100 * beta.metrics['pck_image_12']:.1f}"
    assert next(row for row in rows if row[:1] == ["beta"])[-2:] == ["7", "champion"]
    low, high = beta.intervals["pck_image_12"]
    assert f"{100 * low:.1f}–{100 * high:.1f}" in text
    for told in ("mean pose", "always visible", "+3.1 points, at least 2.2", "not promoted", "n/a", "<NaN>"):
        assert told in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (41.2, "41 s"), (720, "12 min"), (12240, "3.4 h"), (float("nan"), "–")]
)
def test_durations_are_said_as_people_say_them(seconds, text):
    assert duration(seconds) == text
