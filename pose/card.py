"""The model card that travels with every bundle: what the model is, how good, on what, made how."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pose.bundle import read_description
from pose.config import TORCHVISIONS
from pose.data.shards import DatasetInfo
from pose.evaluation import DEFINITIONS, Evaluation
from pose.export import ExportReport
from pose.inference.weights import FACTS
from pose.protocol import BOXES
from pose.systems.base import Card


def write_card(bundle: Path, card: Card, evaluation: Evaluation, data: DatasetInfo, lineage: Mapping[str, str]) -> Path:
    """Writes card.md into a bundle that already holds model.json, export.json, params.yaml and any fitted.json."""
    description, report = read_description(bundle), ExportReport.load(bundle)
    sections = [
        f"# {card.title}: {description['system']} on {data.name}",
        _purpose(description, card),
        "## Data\n\n" + _data(data, _licence(bundle, data.name)),
        f"## Results on {evaluation.split}\n\n" + _results(evaluation),
        "## Files and speed\n\n" + _files(bundle, report, card),
        "## Limits\n\n" + _limits(description, evaluation),
        "## Lineage\n\n" + _table(("what", "value"), [(key, f"`{value}`") for key, value in sorted(lineage.items())]),
        f"## Reproduce\n\nAt commit `{lineage['git_commit']}`:\n\n```\n{lineage['command']}\n```",
    ]
    path = bundle / "card.md"
    path.write_text("\n\n".join(sections) + "\n")
    return path


def _purpose(description: Mapping[str, Any], card: Card) -> str:
    width, height = description["input_size"]
    joints = f"the {len(description['joints'])} joints ({description['skeleton']}: {', '.join(description['joints'])})"
    if _scene(description):
        finds = (
            f"Finds everyone in one RGB picture, fitted to the top left of {width} x {height} px, uint8: `boxes` and "
            f"`person_scores`, and for each person {joints}, where the system finds joints. `boxes` and `keypoints`"
        )
    else:
        finds = (
            f"Finds {joints} of one person in an RGB picture of {width} x {height} px, uint8, and says for each if "
            "it is visible. `keypoints`"
        )
    return (
        f"{finds} are pixels of that picture, pixel (i, j) covering [j, j+1) x [i, i+1).\n\n"
        f"Source: {card.source}. Published: {card.published}.\n\n{_beginning(description['params'])}"
        f"Licence of the system: {card.licence}."
    )


def _beginning(params: Mapping[str, Any]) -> str:
    """Whose weights the training began with, where they were not random."""
    if not params.get("initial"):
        return ""
    trained = any(phase["epochs"] for phase in params["recipes"][params["recipe"]]["phases"])
    how = "The training began with the weights" if trained else "Nothing was trained here: these are the weights"
    theirs = (
        " (torchvision's, BSD-3; of pictures that have their own terms)"
        if TORCHVISIONS.fullmatch(params["initial"])
        else ""
    )
    return f"{how} of `{params['initial']}`{theirs}.\n\n"


def _scene(description: Mapping[str, Any]) -> bool:
    """Whether the model sees whole scenes; bundles of before there were any do not say."""
    return description.get("view") == "scene"


def _data(data: DatasetInfo, licence: str) -> str:
    counts = _table(("split", "people", "images"), [(name, n, data.images[name]) for name, n in data.counts.items()])
    left_out = f"{data.excluded} people were left out as bad records."
    return f"{data.name}, view `{data.crop.view}` of {data.crop.size} px. {left_out}\n\n{counts}\n\nLicence: {licence}."


def _licence(bundle: Path, dataset: str) -> str:
    """What params.yaml says of the archives, or of those whose people a collage shows; drawn data has none."""
    datasets = yaml.safe_load((bundle / "params.yaml").read_text())["data"]
    block = datasets[dataset]
    block = datasets[block["collage"]["of"]] if block.get("collage") else block
    licences = list(dict.fromkeys(archive["licence"] for archive in block.get("archives") or []))
    return "; ".join(licences) or "none needed, the pictures are drawn by this program"


def _results(evaluation: Evaluation) -> str:
    rows = [row for suffix in BOXES for row in _rows(evaluation, suffix)]
    intervals = (
        f"{len(evaluation.image_ids)} images, {evaluation.people} people. Intervals: {evaluation.confidence:.0%}, "
        f"percentile bootstrap over images, {evaluation.resamples} resamples. Baseline: the mean pose of the train "
        "split for coordinates, always answering visible for presence."
    )
    table = _table(("metric", "value", "interval", "baseline", "what it counts"), rows)
    return "\n\n".join([intervals, table, *_protocols(evaluation)])


def _rows(evaluation: Evaluation, suffix: str) -> list[tuple[Any, ...]]:
    """The figures whose people were seen in one kind of boxes."""
    rows = []
    for metric, definition in DEFINITIONS.items():
        name = metric + suffix
        if name not in evaluation.metrics or name.startswith("always_visible"):
            continue
        low, high = evaluation.intervals[name]
        floor = next((figures[name] for figures in evaluation.baselines.values() if name in figures), math.nan)
        counts = f"{definition}; in {BOXES[suffix]}" if suffix else definition
        rows.append(
            (f"`{name}`", f"{evaluation.metrics[name]:.4f}", f"{low:.4f} to {high:.4f}", _number(floor), counts)
        )
    return rows


def _protocols(evaluation: Evaluation) -> list[str]:
    """Only figures of one protocol may be compared."""
    if not evaluation.protocols:
        return []
    rows = [
        (BOXES[suffix], f"`{protocol.id}`", protocol.boxes, protocol.nms, "yes" if protocol.flip_test else "no")
        for suffix, protocol in evaluation.protocols.items()
    ]
    return [_table(("figures in", "protocol", "boxes", "suppression", "flip test"), rows)]


def _files(bundle: Path, report: ExportReport, card: Card) -> str:
    facts, sizes = bundle / FACTS, dict(report.bytes)
    if facts.is_file():
        sizes[FACTS] = facts.stat().st_size
    files = _table(("file", "bytes"), sorted(sizes.items()))
    fitted = f" `{FACTS}` holds {card.fitted}." if facts.is_file() else ""
    parity = ", ".join(f"{kind} {worst:.2g} px" for kind, worst in report.parity_px.items())
    threads = f"{report.threads} threads" if report.threads else "one thread per core"
    rate = f"{report.throughput:.0f}" if report.throughput >= 10 else f"{report.throughput:.2f}"
    return (
        f"{files}\n\n{report.parameters:,} parameters. Largest difference from the trained network over "
        f"{report.parity_images} pictures of the split: {parity}. ONNX Runtime on the exporting machine's CPU, "
        f"{threads}: {report.latency_ms:.2f} ms for one picture, {rate} pictures a second in "
        f"batches of {report.batch}.{fitted}"
        + (f" The exported files lack {card.graph_lacks}." if card.graph_lacks else "")
    )


def _limits(description: Mapping[str, Any], evaluation: Evaluation) -> str:
    if _scene(description):
        view = "The whole picture is seen at the size above: people who are small in it are hard to find."
    elif description["crop"]["view"] == "image":
        view = "The whole picture is squashed to a square, so it must show one person who fills most of it."
    else:
        view = "The picture must be a crop around one person; no detector is inside."
    silent = ", ".join(evaluation.not_applicable)
    nothing = f" It makes no statement that these could measure: {silent}." if silent else ""
    return f"{view}{nothing} It was measured on the split above alone; other pictures may be harder."


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4f}"
