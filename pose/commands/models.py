"""`pose evaluate`, `pose export` and `pose import`: figures and files of one trained model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pose.commands.options import (
    Json,
    Profile,
    Set,
    dataset_params,
    load_params,
    model_folder,
    prepared_folder,
    split_overrides,
)
from pose.commands.output import print_json, print_table

if TYPE_CHECKING:
    from pose.config import CropParams, Params
    from pose.evaluation import Evaluation
    from pose.systems.base import System

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="models:/NAME@ALIAS, models:/NAME/VERSION, a bundle or training folder.")
]
OnDataset = Annotated[
    str | None, typer.Option("--dataset", "-d", help="Prepared dataset; default the one in params.yaml.")
]


def evaluate(
    model: Model,
    dataset: OnDataset = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also save the evaluation in this folder.")] = None,
    detections: Annotated[
        Path | None,
        typer.Option(
            help="COCO detections (JSON) of the split: figures in these boxes too. Default evaluation.detections, "
            "on the dataset of params.yaml and where the model sees people in boxes.",
        ),
    ] = None,
    profile: Profile = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Measure a model on the evaluation split: every metric with its interval and what the baselines reach.

    Where people are counted by OKS, also how well those of each kind are found, and what each kind of error costs.
    `--json` has the figures of each joint, too. `--set evaluation.split=val` takes the validation split, and what says
    how a trained network is used can be tried here: `--set systems.openpose.grouping.peak=0.15`, flip_test, scales.
    Example: `pose evaluate models:/pose-lspet@champion`
    """
    from pose.progress import say

    others, retuning = split_overrides(set_)
    params = load_params(profile, others)
    folder, name = model_folder(model, profile, others), dataset or params.dataset
    if detections is not None:
        _require_boxes_to_be_of_use(folder, name, detections)
    given = params.detections_path if name == params.dataset else None
    evaluation = evaluate_folder(folder, name, params, detections or given, retuning)
    _mind_missing_boxes(evaluation)
    if retuning:
        say(f"evaluated with {', '.join(retuning)}, not with the model's own numbers")
    if out is not None:
        evaluation.save(out)
        (out / "overrides.json").unlink(missing_ok=True)
        if retuning:
            (out / "overrides.json").write_text(dumps(retuning, indent=1) + "\n")
    if json:
        intervals = evaluation.intervals
        figures: dict[str, Any] = {
            name: _with_interval(value, *intervals[name]) | {"protocol": _protocol(evaluation, name)}
            for name, value in evaluation.metrics.items()
        }
        print_json(figures | evaluation.details() | ({"overrides": retuning} if retuning else {}))
    else:
        _print(evaluation)


def export(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the bundle.")],
    dataset: OnDataset = None,
    profile: Profile = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Write a model as ONNX and torch.export, decoding included, and hold both against the network.

    Parity is measured on real evaluation pictures; a file that fails it is not kept (exit code 5). `--set` of what says
    how a trained network is used (systems.openpose.grouping, flip_test, ...) gives the bundle these numbers.
    Example: `pose export runs/training/vgg19-0a1b2c3d4e5f --out vgg19-bundle`
    """
    from pose.inference.weights import trained

    others, retuning = split_overrides(set_)
    params = load_params(profile, others)
    name = dataset or params.dataset
    dataset_params(name)
    folder = model_folder(model, profile, others)
    _require_replaceable(out, folder)
    source = trained(folder, retuning)
    _export(source.name, source.system, source.weights, source.crop, out, name, params, json)


def import_(
    system: Annotated[str, typer.Argument(metavar="SYSTEM", help="A name under `systems` in params.yaml.")],
    weights: Annotated[
        str,
        typer.Argument(
            help="The release's checkpoint (.pth, .pth.tar, .pt, .safetensors), or what torchvision calls its own."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the bundle.")],
    dataset: OnDataset = None,
    profile: Profile = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Take over the weights of a system's official release, as a bundle that evaluates and predicts like any other.

    Sizes and joints have to be the release's: the joints are the dataset's, which also shows on which pictures the
    bundle says what the network says. Nothing in the file is executed. Example:
    `pose import simple_baseline pose_resnet_50_256x192.pth.tar --out sb50 -d coco --set
    systems.simple_baseline.recipe=paper`. What torchvision has is taken by its name:
    `pose import person_detector FasterRCNN_ResNet50_FPN_Weights.COCO_V1 --out detector -d coco`
    """
    import tempfile

    from safetensors.torch import save_file

    from pose.commands.systems import known_system
    from pose.data.detail import say_where_crops_are_coarse
    from pose.data.shards import describe
    from pose.official import taken_over
    from pose.skeleton import skeleton_named

    params = load_params(profile, set_)
    known_system(params, system)
    name = dataset or params.dataset
    dataset_params(name)
    _require_replaceable(out, Path(weights))
    info = describe(prepared_folder(name))
    loaded = taken_over(system, params.systems[system], skeleton_named(info.skeleton), weights)
    say_where_crops_are_coarse(system, loaded.view, loaded.params, info)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_file({key: tensor.contiguous().clone() for key, tensor in loaded.network.state_dict().items()}, file)
        _export(system, loaded, file, info.crop, out, name, params, json)


def _export(
    name: str, system: System, weights: Path, crop: CropParams, out: Path, dataset: str, params: Params, json: bool
) -> None:
    """Writes the bundle, checked on the dataset's evaluation split, and says what came of it."""
    from dataclasses import asdict

    from pose.data.scenes import SceneSplit
    from pose.data.shards import Split
    from pose.export import export as export_model

    opened = SceneSplit if system.view == "scene" else Split
    split = opened.open(prepared_folder(dataset), params.evaluation.split)
    report = export_model(name, system, weights, split, crop, out, params.export, params.training.threads)
    if json:
        print_json(asdict(report))
        return
    parity = ", ".join(f"{kind} {distance:.2g} px" for kind, distance in report.parity_px.items())
    typer.echo(
        f"{out}: apart from the network by {parity} at most on {report.parity_images} pictures\n"
        f"{report.latency_ms:.2f} ms for one picture, {report.throughput:.3g} pictures/s in batches of {report.batch}\n"
        f"next: pose predict --model {out} PICTURES"
    )


def _require_replaceable(out: Path, model: Path) -> None:
    """An export replaces the folder it writes: only an earlier export, other than the model itself, may be lost."""
    from pose.errors import ConfigError

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if out.resolve() == model.resolve() or not (out / "export.json").is_file() or (out / "manifest.json").exists():
        raise ConfigError(f"{out} exists and is no plain earlier export, which --out may replace; choose a new folder")


def _require_boxes_to_be_of_use(folder: Path, dataset: str, detections: Path) -> None:
    from pose.errors import ConfigError
    from pose.inference.choice import system_of

    system, scene = system_of(folder)
    if scene:
        raise ConfigError(f"{system} ({folder}) finds people by itself; leave --detections {detections} away")
    if dataset_params(dataset).crop.view == "image":
        raise ConfigError(
            f"people of {dataset} are seen in the whole image (`data.{dataset}.crop.view`), not in boxes; leave "
            f"--detections {detections} away"
        )


def _mind_missing_boxes(evaluation: Evaluation) -> None:
    from pose.progress import say
    from pose.protocol import TRUE_BOXES

    given = evaluation.protocols.get("")
    if given is not None and given.boxes == TRUE_BOXES and "_detected" not in evaluation.protocols:
        say(
            "people are seen in annotated boxes alone; for figures in detected boxes beside these give --detections "
            "FILE, a person detector's boxes of the same images"
        )


def evaluate_folder(
    folder: Path, dataset: str, params: Params, detections: Path | None = None, overrides: Sequence[str] = ()
) -> Evaluation:
    """The figures of a bundle or training folder on a prepared dataset. Raises ConfigError for other joints.

    detections: a file of boxes, for a model that sees people in boxes. overrides: see `trained`.
    """
    from pose.data.detail import say_where_crops_are_coarse
    from pose.data.shards import describe
    from pose.evaluate import evaluate_system
    from pose.inference.weights import trained

    dataset_params(dataset)
    model, prepared = trained(folder, overrides), prepared_folder(dataset)
    say_where_crops_are_coarse(model.name, model.system.view, model.system.params, describe(prepared))
    evaluation, _ = evaluate_system(model.system, prepared, params.evaluation, detections=detections)
    return evaluation


def _with_interval(value: float, low: float, high: float) -> dict[str, float | None]:
    numbers = {"value": value, "low": low, "high": high}
    return {name: None if math.isnan(number) else number for name, number in numbers.items()}


def _protocol(evaluation: Evaluation, metric: str) -> str | None:
    protocol = evaluation.protocol_of(metric)
    return None if protocol is None else protocol.id


def _print(evaluation: Evaluation) -> None:
    from pose.evaluation import DEFINITIONS
    from pose.protocol import ONE_SCALE

    rows = []
    named = {f"{name}{suffix}": text for suffix in ("", "_detected") for name, text in DEFINITIONS.items()}
    for name, definition in named.items():
        if name not in evaluation.metrics:
            continue
        floors = {who: figures[name] for who, figures in evaluation.baselines.items() if name in figures}
        floor = ", ".join(f"{who.replace('_', ' ')} {value:.4f}" for who, value in floors.items())
        rows.append((name, f"{evaluation.metrics[name]:.4f}", _span(evaluation.intervals[name]), floor, definition))
    title = f"{evaluation.people} people, {evaluation.dataset} {evaluation.split}"
    interval = f"{evaluation.confidence:.0%} interval"
    print_table(title, ("metric", "value", interval, "baseline", "what it counts"), rows, right=("value",))
    for suffix in _sources(evaluation):
        _print_slices(evaluation, suffix)
        _print_diagnosis(evaluation, suffix)
    for suffix, protocol in evaluation.protocols.items():
        scales = "" if protocol.scales == ONE_SCALE else f", scales {', '.join(f'{s:g}' for s in protocol.scales)}"
        typer.echo(
            f"protocol {protocol.id}{f' of figures in {suffix}' if suffix else ''}: {_boxes(evaluation, suffix)}, "
            f"data {protocol.data[:12]}, NMS {protocol.nms}{scales}"
        )


def _span(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.4f} to {interval[1]:.4f}"


def _sources(evaluation: Evaluation) -> list[str]:
    """Ends of the names of OKS figures; one where both are the same, as of a system that finds people by itself."""
    first = evaluation.protocols.get("")
    return [end for end in evaluation.slices if end == "" or evaluation.protocols.get(end) != first]


def _boxes(evaluation: Evaluation, suffix: str) -> str:
    source = evaluation.protocols[suffix].boxes
    return {"none": "no boxes", "truth": "annotated boxes"}.get(source, f"{source} boxes")


def _print_slices(evaluation: Evaluation, suffix: str) -> None:
    rows = [
        (s.kind, s.name, s.people, f"{s.ap:.4f}", _span(s.ap_interval), f"{s.ar:.4f}", _span(s.ar_interval))
        for s in evaluation.slices[suffix]
    ]
    interval = f"{evaluation.confidence:.0%} interval"
    columns = ("people by", "group", "people", f"oks_ap{suffix}", interval, f"oks_ar{suffix}", interval)
    print_table(f"who is found, {_boxes(evaluation, suffix)}", columns, rows, right=columns[2:4] + columns[5:6])


def _print_diagnosis(evaluation: Evaluation, suffix: str) -> None:
    from pose.report.sections import ERRORS

    made = evaluation.diagnosis[suffix]
    rows = [
        (kind.replace("_", " "), f"{gained:+.4f}", made.counts[kind], ERRORS[kind])
        for kind, gained in made.gained.items()
    ]
    columns = ("error", f"oks_ap{suffix} gained", "count", "what it counts")
    print_table(f"what errors cost, {_boxes(evaluation, suffix)}", columns, rows, right=columns[1:3])
