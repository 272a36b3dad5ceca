"""The report's diagrams, as inline SVG that follows the page's light or dark colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, MaxNLocator, NullLocator

from pose.evaluation import Evaluation
from pose.report.entry import Entry, ranked
from pose.report.sections import headline, mean_pose, sees_crops

INK = "#010203"
"""Stands for the page's text colour and becomes `currentColor` in the SVG."""
COLOURS = ("#2f7ed8", "#e07b1a", "#1f9e77", "#c2478f", "#8a63d2", "#b59a0c", "#d1495b", "#4aa3b5")
"""Legible on white and on near-black; neighbours differ for the colour-blind too."""
BASELINE = "#8b8f98"
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.alpha": 0.12,
    "grid.color": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.9,
}


def colours(entries: Sequence[Entry]) -> dict[str, str]:
    """A colour for each architecture, the same in every diagram."""
    return {entry.name: COLOURS[i % len(COLOURS)] for i, entry in enumerate(entries)}


def render(draw: Callable[[Sequence[Entry]], Figure], entries: Sequence[Entry]) -> str:
    """A diagram as an <svg> element whose ids no other diagram has."""
    buffer, name = io.StringIO(), draw.__name__
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = draw(entries)
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata=NO_METADATA)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    # Text then inherits the page's own font.
    text = re.sub(r"font-family: [^;]*; ?", "", text)
    return text.replace('id="', f'id="{name}-').replace('href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")


TITLES = {
    "pck_image_12": "PCK at 1/12 of the squashed image, %",
    "oks_ap": "average precision (OKS), %",
    "oks_ap_detected": "end-to-end average precision (OKS), %",
    "box_ap": "average precision (boxes), %",
}


def standing(entries: Sequence[Entry]) -> Figure:
    """Each architecture's two headline figures with their intervals, against the baselines."""
    figure = _figure(10, 0.9 + 0.42 * max(len(entries), 2))
    left, right = figure.subplots(1, 2, sharey=True)
    first = headline(entries)
    order = list(reversed(ranked(entries, first)))
    colour = colours(entries)
    for axes, metric, label, nothing in (
        (left, first, TITLES[first], "not measured"),
        (right, "presence_balanced_accuracy", "presence, balanced accuracy, %", "no presence head"),
    ):
        for row, entry in enumerate(order):
            evaluation = _known(entry)
            if metric not in evaluation.metrics:
                axes.text(98, row, nothing, va="center", ha="right", alpha=0.6, style="italic")
                continue
            value, (low, high) = 100 * evaluation.metrics[metric], 100 * np.array(evaluation.intervals[metric])
            axes.plot([low, high], [row, row], color=colour[entry.name], lw=5, alpha=0.35, solid_capstyle="round")
            axes.plot(value, row, "o", color=colour[entry.name], ms=8)
            axes.annotate(f"{value:.1f}", (value, row), (0, 9), textcoords="offset points", ha="center", fontsize=9)
        axes.set(title=label, xlim=(0, 100), ylim=(-0.6, len(order) - 0.3))
    if order:
        floor = mean_pose(_known(order[-1]), first)
        if floor is not None:
            _baseline_line(left, 100 * floor, "mean pose")
        _baseline_line(right, 50, "always visible")
        left.set_yticks(range(len(order)), [entry.name for entry in order])
    return figure


def training_curves(entries: Sequence[Entry]) -> Figure:
    """Every architecture's epochs on one plot: validation PCK and presence, and the unweighted loss terms."""
    figure = _figure(10, 6.4)
    (pck, presence), (coordinates, flags) = figure.subplots(2, 2)
    colour = colours(entries)
    for axes, term, title, factor in (
        (pck, "pck_image_12", "validation PCK at 1/12, %", 100),
        (presence, "presence_balanced_accuracy", "validation presence, balanced accuracy, %", 100),
        (coordinates, "coordinates", "coordinate loss, validation (training dashed)", 1),
        (flags, "presence", "presence loss, validation (training dashed)", 1),
    ):
        for entry in entries:
            label: str | None = entry.name
            for points in _by_phase(entry, "val", term):
                axes.plot(*_xy(points, factor), color=colour[entry.name], label=label, marker=_marker(points), ms=3)
                label = None
            for points in _by_phase(entry, "train", term):
                axes.plot(*_xy(points, factor), "--", color=colour[entry.name], lw=1.1, alpha=0.7)
        axes.set(title=title, xlabel="epoch, all phases")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if not axes.lines:
            axes.text(0.5, 0.5, "no architecture has this", transform=axes.transAxes, ha="center", alpha=0.6)
        _phase_lines(entries, axes)
    if coordinates.lines:
        _logarithmic(coordinates, "y")
    pck.set_ylim(bottom=0)
    if pck.lines:
        pck.legend(fontsize=9, loc="best")
    return figure


def speed_against_accuracy(entries: Sequence[Entry]) -> Figure:
    """Accuracy against training speed, against the time spent, and against latency."""
    figure = _figure(10, 3.9)
    throughput, time, latency = figure.subplots(1, 3, sharey=True)
    colour = colours(entries)
    metric = headline(entries)
    for entry in ranked(entries, metric):
        evaluation = _known(entry)
        if metric not in evaluation.metrics:
            continue
        value, ends = 100 * evaluation.metrics[metric], 100 * np.array(evaluation.intervals[metric])
        for axes, x in ((throughput, entry.images_per_second), (latency, entry.latency_ms)):
            if x is not None:
                axes.plot(x, value, "o", color=colour[entry.name], ms=_bubble(entry), alpha=0.45, mew=0)
                axes.plot([x, x], ends, "_-", color=colour[entry.name], lw=1.6, ms=7)
                axes.annotate(entry.name, (x, value), (0, 13), textcoords="offset points", fontsize=9, ha="center")
        seconds, points = _against_time(entry)
        time.plot(seconds, points, color=colour[entry.name], label=entry.name)
    throughput.set(title="training speed", xlabel="training images per second", ylabel=TITLES[metric])
    time.set(title="time spent", xlabel="seconds of training (validation PCK)")
    what = "picture, of top-down systems one crop" if any(map(sees_crops, entries)) else "image"
    latency.set(title="latency", xlabel=f"ms for one {what} (ONNX)")
    for axes in (throughput, latency):
        if axes.lines:
            _logarithmic(axes, "x")
        axes.margins(x=0.25, y=0.15)
    throughput.set_ylim(bottom=0)
    if time.lines:
        time.legend(fontsize=8)
    return figure


def pck_curves(entries: Sequence[Entry]) -> Figure:
    """PCK against its threshold, in both geometries, with the mean pose."""
    figure = _figure(10, 3.9)
    colour = colours(entries)
    order = [entry for entry in ranked(entries, "pck_image_12") if "image" in _known(entry).curves]
    for axes, kind, unit, mark in zip(
        figure.subplots(1, 2),
        ("image", "torso"),
        ("share of the squashed image's side", "share of the torso length, original pixels"),
        (1 / 12, 0.2),
        strict=True,
    ):
        for entry in order:
            curves = _known(entry).curves
            axes.plot(curves[f"{kind}_thresholds"], 100 * curves[kind], color=colour[entry.name], label=entry.name)
        if order:
            curves = _known(order[0]).curves
            floor = curves[f"mean_pose_{kind}"]
            axes.plot(curves[f"{kind}_thresholds"], 100 * floor, "--", color=BASELINE, label="mean pose")
        axes.axvline(mark, color=INK, lw=0.8, ls=":", alpha=0.6)
        axes.set(title=f"joints within a {unit.split(',')[0]}, %", xlabel=f"threshold, {unit}", ylim=(0, 100))
        axes.set_xlim(left=0)
    if order:
        figure.axes[0].legend(fontsize=9, loc="upper left")
    return figure


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _known(entry: Entry) -> Evaluation:
    if entry.evaluation is None:
        raise ValueError(f"{entry.name} was never evaluated and cannot be drawn")
    return entry.evaluation


def _baseline_line(axes: Axes, value: float, label: str) -> None:
    axes.axvline(value, color=BASELINE, ls="--", lw=1.4)
    axes.annotate(f"{label} {value:.1f}", (value, 0), (4, -14), textcoords="offset points", fontsize=9, color=BASELINE)


def _by_phase(entry: Entry, split: str, term: str) -> list[list[tuple[float, float]]]:
    """(epoch, value) points where the term was recorded, one list per phase."""
    phases: dict[str, list[tuple[float, float]]] = {}
    for record in entry.history:
        if term in record[split]:
            phases.setdefault(str(record["phase"]), []).append((record["epoch"], record[split][term]))
    return list(phases.values())


def _xy(points: list[tuple[float, float]], factor: float) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.array(points).T
    return x, factor * y


def _marker(points: list[tuple[float, float]]) -> str | None:
    return "o" if len(points) < 25 else None


def _phase_lines(entries: Sequence[Entry], axes: Axes) -> None:
    """A faint line at every epoch where some architecture's phase ends."""
    ends = {
        before["epoch"] + 0.5
        for entry in entries
        for before, after in zip(entry.history, entry.history[1:], strict=False)
        if before["phase"] != after["phase"]
    }
    for end in sorted(ends):
        axes.axvline(end, color=INK, lw=0.8, ls=":", alpha=0.5)


def _against_time(entry: Entry) -> tuple[np.ndarray, np.ndarray]:
    seconds = np.cumsum([record["seconds"] for record in entry.history])
    points = np.array([record["val"].get("pck_image_12", np.nan) for record in entry.history], dtype=np.float64)
    return seconds, 100 * points


def _bubble(entry: Entry) -> float:
    """Marker size in points, growing with the logarithm of the parameter count."""
    return 8.0 if not entry.parameters else 3 + 1.6 * max(np.log10(entry.parameters) - 3, 1)


def _logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_minor_locator(NullLocator())
