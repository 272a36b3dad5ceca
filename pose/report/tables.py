"""The results as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pose.evaluation import Evaluation
from pose.report.entry import Entry, ranked
from pose.report.sections import headline, sees_crops, shown

COLUMNS = {
    "pck_image_12": (
        ("pck_image_12", "PCK@1/12"),
        ("pck_torso_02", "PCK torso"),
        ("presence_accuracy", "presence"),
        ("presence_balanced_accuracy", "balanced"),
    ),
    "oks_ap": (
        ("oks_ap", "OKS AP"),
        ("oks_ap50", "AP50"),
        ("box_ap", "box AP"),
    ),
    "oks_ap_detected": (
        ("oks_ap_detected", "end to end"),
        ("oks_ap50_detected", "AP50"),
        ("oks_ap", "true boxes"),
        ("box_ap", "box AP"),
    ),
}
COLUMNS["box_ap"] = COLUMNS["oks_ap"]
"""Of a run, by the metric it is ranked by."""
NOTES = {
    "pck_image_12": (
        "PCK@1/12: joints within 1/12 of the side, image squashed to a square; PCK torso: within 0.2 of the torso; "
        "balanced: balanced accuracy of presence; ms: latency of one image."
    ),
    "oks_ap": (
        "OKS AP: average precision of poses as COCO defines it, in annotated boxes where the system needs any; "
        "box AP: of the boxes a system finds itself; ms: latency of one image."
    ),
    "oks_ap_detected": (
        "End to end: average precision of poses as COCO defines it, in detected boxes where the system needs any; "
        "AP50: of it; true boxes: the same in annotated boxes; box AP: of the boxes a system finds itself; ms: latency "
        "of one picture; where it says crop, of one person's crop, without the detector."
    ),
}
NOTES["box_ap"] = NOTES["oks_ap"]
FEWEST_CHARACTERS = 8
"""Width of a figure's column at least, so that an interval stays on one line."""


def results_table(entries: Sequence[Entry]) -> Table:
    """Every architecture with its figures, intervals and fate, best first; then the baselines.

    Fits a terminal of 100 characters; reasons stand below the rows.
    """
    first = headline(entries)
    columns = COLUMNS[first]
    title, caption = Text(_title(entries)), Text(_caption(entries))
    table = Table(
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("architecture", no_wrap=True)
    for _, label in columns:
        table.add_column(label, justify="right", min_width=FEWEST_CHARACTERS, no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("version", justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    order = ranked(entries, first)
    for entry in order:
        figures = [interval_text(entry.evaluation, metric, first) for metric, _ in columns]
        number_of_version = (entry.version or "–").rsplit("/", 1)[-1]
        table.add_row(
            entry.name,
            *figures,
            number(entry.latency_ms) + ("\ncrop" if sees_crops(entry) else ""),
            number_of_version,
            short_outcome(entry),
            style="bold green" if entry.champion_of else None,
        )
    for entry in entries:
        if entry.evaluation is None:
            table.add_row(entry.name, *["–"] * (len(columns) + 2), "failed", style="red")
    if order and order[0].evaluation is not None:
        for name, row in order[0].evaluation.baselines.items():
            figures = [percent(row.get(metric)) for metric, _ in columns]
            table.add_row(name.replace("_", " "), *figures, "", "", "baseline", style="dim")
    return table


def interval_text(evaluation: Evaluation | None, metric: str, first: str) -> str:
    """ "61.3" above "59.8–62.9" in percent; n/a where the system makes no such statement. first: the run's headline."""
    if evaluation is None or not shown(evaluation, metric, first):
        return "n/a"
    low, high = evaluation.intervals[metric]
    return f"{percent(evaluation.metrics[metric])}\n{percent(low)}–{percent(high)}"


def percent(value: float | None) -> str:
    """One decimal, without the sign; a dash for nothing."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def number(value: float | None) -> str:
    """Three significant digits, with thousands set apart; a dash for nothing."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def outcome(entry: Entry) -> str:
    """Promoted or not, and why."""
    verdict = f"champion of {entry.champion_of}" if entry.champion_of else short_outcome(entry)
    return f"{verdict}: {entry.reason}" if entry.reason else verdict


def short_outcome(entry: Entry) -> str:
    """Failed, champion, promoted, not promoted, or not compared."""
    if entry.evaluation is None:
        return "failed"
    if entry.champion_of:
        return "champion"
    return {None: "not compared", True: "promoted", False: "not promoted"}[entry.promoted]


def _title(entries: Sequence[Entry]) -> str:
    order = ranked(entries, headline(entries))
    if not order or order[0].evaluation is None:
        return "no architecture was evaluated"
    evaluation = order[0].evaluation
    return f"{evaluation.dataset}, {evaluation.split} split, {evaluation.people} people: percent, best first"


def _caption(entries: Sequence[Entry]) -> str:
    lines = [f"{entry.name} {outcome(entry)}" for entry in entries if entry.reason and entry.evaluation is not None]
    lines += [f"{entry.name} failed: {entry.failure}" for entry in entries if entry.evaluation is None]
    evaluations = [entry.evaluation for entry in entries if entry.evaluation is not None]
    if evaluations:
        lines.append(
            f"Below each figure its {100 * evaluations[0].confidence:g} % bootstrap interval over images. "
            f"{NOTES[headline(entries)]}"
        )
    return "\n".join(lines)
