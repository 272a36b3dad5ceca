"""Export: the trained network with its normalisation and decoding as ONNX and as a torch.export program.

One graph: images uint8 [B, 3, H, W] RGB at the network's input size in; keypoints [B, K, 2] in pixels of that
input, scores [B, K] and presence [B, K] out. B is free. What both files say is held against the network itself on
real evaluation crops before anything is handed on. Systems of the scene view differ: see pose.export_scenes.
"""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pose import export_scenes
from pose.config import CropParams, ExportParams
from pose.data import views
from pose.data.loader import Loader
from pose.data.scenes import SceneSplit
from pose.data.shards import Split
from pose.decoding import settling
from pose.errors import ExportError
from pose.layers.normalise import Normalise
from pose.systems import restore
from pose.systems.base import System, parameter_count

OUTPUTS = ("keypoints", "scores", "presence")
PROBABILITY_TOLERANCE = 1e-3
"""Largest difference in scores and presence; that of the keypoints is the parameters' business."""
THROUGHPUT_BATCH = 16

Predict = Callable[[np.ndarray], tuple[np.ndarray, ...]]
"""uint8 [B, 3, H, W] to the graph's outputs."""


@dataclass(frozen=True)
class ExportReport:
    """What was exported and how it behaves on this machine, in ONNX Runtime on the CPU."""

    parity_px: dict[str, float]
    """Largest difference in input pixels between the network and each file, over `parity_images` crops or scenes."""
    parity_images: int
    latency_ms: float
    """Median time of one image."""
    throughput: float
    """Images per second in batches of `batch`."""
    threads: int
    """ONNX Runtime's intra-op threads; 0 is one per core."""
    parameters: int
    bytes: dict[str, int]
    seconds: float
    batch: int = THROUGHPUT_BATCH
    """Images at a time in `throughput`; scenes go one by one."""

    @staticmethod
    def load(bundle: Path) -> ExportReport:
        """The report that `export` left in a bundle."""
        return ExportReport(**json.loads((bundle / "export.json").read_text()))


class Deployed(nn.Module):
    """images uint8 [B, 3, H, W] to keypoints [B, K, 2] input px, scores [B, K], presence [B, K], all float32."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.normalise = Normalise()
        self.network = system.network
        self.joints = system.joints
        self.outputs = OUTPUTS

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        joints = self.joints(self.network(self.normalise(images)))
        # Graph outputs need names of their own, also where a system's scores are its presence.
        return joints.keypoints.float(), joints.scores.float().clone(), joints.presence.float()


def export(
    name: str,
    system: System,
    weights: Path,
    split: Split | SceneSplit,
    crop: CropParams,
    out: Path,
    params: ExportParams,
    threads: int = 0,
) -> ExportReport:
    """Writes model.onnx, model.pt2, model.safetensors, model.json and export.json to `out`, all of them or none.

    Raises ExportError where a file differs from the network by more than the tolerance: which image, joint, how much.
    """
    building = out.with_name(out.name + ".part")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        shutil.copyfile(weights, building / "model.safetensors")
        report = _build(name, restore(system, weights), split, crop, building, params, threads)
        shutil.rmtree(out, ignore_errors=True)
        building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return report


def not_finite(network: nn.Module) -> list[str]:
    """Keys of the tensors that hold values that are not numbers."""
    return [key for key, value in network.state_dict().items() if not torch.isfinite(value).all()]


def _require_finite(name: str, network: nn.Module) -> None:
    """A graph that decodes cannot say that its maps are not numbers: no NaN is a peak, so it would find nobody."""
    if broken := not_finite(network):
        raise ExportError(
            f"{name}: {len(broken)} of the weights hold values that are not numbers, the first {broken[0]}; export an "
            "earlier checkpoint, or train again with a lower learning rate or clip_norm set"
        )


def _build(
    name: str,
    system: System,
    split: Split | SceneSplit,
    crop: CropParams,
    directory: Path,
    params: ExportParams,
    threads: int,
) -> ExportReport:
    """Both programs and what is said of them; raises ExportError where one of them is wrong."""
    started = time.monotonic()
    _require_finite(name, system.network)
    system.network.cpu()
    scene = system.view == "scene"
    deployed: export_scenes.DeployedScene | Deployed
    deployed = export_scenes.DeployedScene(system) if scene else Deployed(system)
    deployed.eval()
    outputs = deployed.outputs
    write_programs(deployed, system.params.input_size, directory, outputs, any_batch=not scene)
    _write_description(name, system, crop, directory / "model.json")

    rows = np.unique(np.linspace(0, len(split) - 1, params.parity_images).round().astype(np.int64))
    run_onnx = onnx_network(directory / "model.onnx", threads, outputs)
    candidates = {"onnx": run_onnx, "torch_export": exported_network(directory / "model.pt2")}
    if isinstance(split, SceneSplit):
        images, check = _scene_check(system, split, rows, _eager(deployed), params)
    else:
        images, check = _person_check(system, split, rows, _eager(deployed), params)
    parity = {kind: check(f"{name}, {kind}", run) for kind, run in candidates.items()}
    count = 1 if scene else THROUGHPUT_BATCH
    batch = np.resize(images, (count, *images.shape[1:]))
    report = ExportReport(
        parity_px=parity,
        parity_images=len(rows),
        latency_ms=1000 * _seconds(run_onnx, images[:1], params.latency_runs),
        throughput=count / _seconds(run_onnx, batch, params.latency_runs),
        threads=threads,
        parameters=parameter_count(system.network),
        bytes={path.name: path.stat().st_size for path in sorted(directory.glob("model.*"))},
        seconds=time.monotonic() - started,
        batch=count,
    )
    (directory / "export.json").write_text(json.dumps(asdict(report), indent=1) + "\n")
    return report


Check = Callable[[str, Predict], float]
"""(what it is, a way to run it) to its largest distance from the network; raises ExportError beyond the tolerance."""


def _person_check(
    system: System, split: Split, rows: np.ndarray, network: Predict, params: ExportParams
) -> tuple[np.ndarray, Check]:
    """The images of these rows, and what holds another way of running them against the network."""
    images = inputs(system, split, rows)
    expected = network(images)
    return images, lambda what, run: check_parity(what, run, images, expected, split, rows, params.tolerance_px)


def _scene_check(
    system: Any, split: SceneSplit, rows: np.ndarray, network: Predict, params: ExportParams
) -> tuple[np.ndarray, Check]:
    """As _person_check, image by image."""
    images = export_scenes.inputs(system, split, rows)
    expected = [network(image[None]) for image in images]
    floor = system.score_floor
    return images, lambda what, run: export_scenes.check_parity(
        what, run, images, expected, split, rows, params.tolerance_px, floor
    )


def inputs(system: System, split: Split, rows: np.ndarray) -> np.ndarray:
    """uint8 [B, 3, H, W]: these rows of a split as the network sees them in evaluation."""
    batch = next(Loader(split, threads=1).batches(rows, len(rows), None, 0, 0))
    return views.plain(batch, system.params.input_size, system.params.padding).contiguous().numpy()


def check_parity(
    what: str,
    run: Predict,
    images: np.ndarray,
    expected: tuple[np.ndarray, ...],
    split: Split,
    rows: np.ndarray,
    tolerance_px: float,
) -> float:
    """Largest distance in input pixels between what `run` says and what is expected; both for all images at once.

    Raises ExportError beyond the tolerance, and for what is not a number.
    """
    got = run(images)
    distance = np.linalg.norm(got[0].astype(np.float64) - expected[0], axis=2)
    worst = np.unravel_index(np.argmax(np.nan_to_num(distance, nan=np.inf)), distance.shape)
    if not distance[worst] <= tolerance_px:
        row, joint = int(rows[worst[0]]), split.skeleton.joints[worst[1]]
        raise ExportError(
            f"{what} says something else than the network: in image {split.file_names[row]} ({split.location(row)}) "
            f"{joint} is {distance[worst]:.4g} px away, at most {tolerance_px:g} px (export.tolerance_px) are allowed. "
            f"{_share_beyond(distance, tolerance_px)} Nothing was exported."
        )
    for output, ours, theirs in zip(OUTPUTS[1:], expected[1:], got[1:], strict=True):
        difference = np.abs(ours.astype(np.float64) - theirs)
        if not difference.max() <= PROBABILITY_TOLERANCE:
            raise ExportError(
                f"{what} says something else than the network: its {output} differ by up to {difference.max():.4g}, "
                f"at most {PROBABILITY_TOLERANCE:g} is allowed. Nothing was exported."
            )
    return float(distance[worst])


def onnx_network(path: Path, threads: int = 0, outputs: tuple[str, ...] = OUTPUTS) -> Predict:
    """An ONNX file in ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: tuple(session.run(list(outputs), {"images": images}))


def exported_network(path: Path) -> Predict:
    """A torch.export program, loaded without executing code."""
    module = torch.export.load(path).module()
    return _eager(module)


def _eager(module: nn.Module) -> Predict:
    def run(images: np.ndarray) -> tuple[np.ndarray, ...]:
        with torch.no_grad():
            return tuple(output.numpy() for output in module(torch.from_numpy(images)))

    return run


def write_programs(
    deployed: nn.Module, size: tuple[int, int], directory: Path, outputs: tuple[str, ...], *, any_batch: bool
) -> None:
    """model.pt2 and, made from the same traced program, model.onnx with its weights inside."""
    width, height = size
    # A batch of one would be traced as a constant, which is what scenes want.
    example = torch.zeros(2 if any_batch else 1, 3, height, width, dtype=torch.uint8)
    shapes = {"images": {0: torch.export.Dim("batch", min=1)}} if any_batch else None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(deployed, (example,), dynamic_shapes=shapes)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # names files of this machine
        torch.export.save(program, directory / "model.pt2")
        graph = torch.onnx.export(
            program, dynamo=True, input_names=["images"], output_names=list(outputs), optimize=True, verbose=False
        )
    assert graph is not None
    for node in graph.model.graph.all_nodes():
        node.metadata_props.clear()
    graph.save(directory / "model.onnx", external_data=False)


def _write_description(name: str, system: System, crop: CropParams, path: Path) -> None:
    described = {
        "system": name,
        "view": system.view,
        "params": system.params.model_dump(mode="json"),
        "skeleton": system.skeleton.name,
        "joints": list(system.skeleton.joints),
        "input_size": system.params.input_size,
        "crop": crop.model_dump(mode="json"),
        "versions": {package: version(package) for package in ("torch", "torchvision", "onnx", "onnxruntime", "numpy")},
    }
    if system.view == "person":
        described["settling"] = settling.to_json(system.settling)
    path.write_text(json.dumps(described, indent=1) + "\n")


def _share_beyond(distance: np.ndarray, tolerance: float) -> str:
    beyond = ~(distance <= tolerance)
    return f"{int(beyond.sum())} of {distance.size} joints in {int(beyond.any(axis=1).sum())} images are affected."


def _seconds(run: Predict, images: np.ndarray, runs: int) -> float:
    """Median time of one call, after two to warm up."""
    for _ in range(2):
        run(images)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - start)
    return float(np.median(times))
