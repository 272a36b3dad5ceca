"""What is to be trained, its fingerprint, and what came of it."""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pose.config import ROOT, Params, RecipeParams, SystemParams
from pose.digests import file_sha256, json_sha256
from pose.errors import ConfigError, TrainingError
from pose.systems import SYSTEMS

NUMERIC_PACKAGES = ("torch", "torchvision", "numpy", "pillow")
"""Their versions may change a trained weight."""

NUMERIC_CODE = (
    "pose/systems/__init__.py",
    "pose/systems/base.py",
    "pose/official.py",
    "pose/skeleton.py",
    "pose/layers/*.py",
    "pose/decoding/*.py",
    "pose/data/ahead.py",
    "pose/data/augment.py",
    "pose/data/batch.py",
    "pose/data/crops.py",
    "pose/data/loader.py",
    "pose/data/mosaic.py",
    "pose/data/scene_views.py",
    "pose/data/scenes.py",
    "pose/data/shards.py",
    "pose/data/views.py",
    "pose/training/[!_]*.py",
)
"""Source files whose change may change a trained weight, besides the system's own."""

RESULTS = ("model.safetensors", "history.jsonl", "outcome.json")
"""What a finished training leaves, in the order to copy it: outcome.json says that the rest is there."""

HARMLESS_CODE = (
    "pose/training/ray.py", "pose/training/jobs.py", "pose/training/spec.py", "pose/training/checkpoints.py",
    "pose/training/follow.py",
)  # fmt: skip


@dataclass(frozen=True)
class TrainingSpec:
    """One training: which system, with which numbers, on which data."""

    system: str
    params: Params
    data: Path
    """Directory of the prepared dataset."""
    data_hash: str
    storage: Path
    mlflow_run: str | None = None
    """Travels in the checkpoints, so that a resumed training goes on in the same record."""
    recorded: str | None = field(default=None, compare=False)
    """The fingerprint that a spec read from JSON was written with: it stays itself when the code moves on."""

    @property
    def system_params(self) -> SystemParams:
        """The resolved block of this system. ConfigError for a system that params.yaml or the program lacks."""
        if self.system not in SYSTEMS or self.system not in self.params.systems:
            known = ", ".join(name for name in SYSTEMS if name in self.params.systems)
            raise ConfigError(f"there is no system {self.system!r} to train; known: {known}")
        return self.params.systems[self.system]

    @property
    def recipe(self) -> RecipeParams:
        """The recipe this system is trained by."""
        return self.system_params.chosen

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of all that decides the trained weights; storage, checkpointing and reports are not in it."""
        return self.recorded or json_sha256(self.identity())

    def check_current(self) -> None:
        """Raises ConfigError where code or packages are no longer those the spec was made with."""
        if self.fingerprint != json_sha256(self.identity()):
            raise ConfigError(
                f"{self.name} was specified with other code or package versions than are here now, and would be "
                f"trained half by these and half by those; start it anew, under its new fingerprint"
            )

    def identity(self) -> dict[str, Any]:
        """What the fingerprint is the digest of."""
        block = self.system_params.model_dump(mode="json", exclude=self.system_params.paths)
        if self.system_params.initial_file is not None:
            block["initial"] = "the first of files"
        block["recipes"] = {block["recipe"]: block["recipes"][block["recipe"]]}
        training = self.params.training
        return {
            "system": self.system,
            "params": block,
            "training": {
                "precision": training.precision,
                "channels_last": training.channels_last,
                "compile": training.compile,
                "deterministic": training.deterministic,
                "threads": training.threads,
                "workers": max(1, training.ray.workers),
            },
            "seed": self.params.seed,
            "data": self.data_hash,
            "files": [file_sha256(path) for path in self.system_params.files],
            "code": code_digest(self.system),
            "versions": {name: importlib.metadata.version(name) for name in NUMERIC_PACKAGES},
        }

    @property
    def name(self) -> str:
        """Short and unique: names the directory, the Ray run and the job."""
        return f"{self.system}-{self.fingerprint[:12]}"

    @property
    def run_dir(self) -> Path:
        """Where history, checkpoints and the trained weights go."""
        return self.storage / "training" / self.name

    def to_json(self) -> str:
        """The whole spec as JSON text, read again by `from_json`."""
        value = {
            "system": self.system,
            "params": self.params.model_dump(mode="json"),
            "data": str(self.data),
            "data_hash": self.data_hash,
            "storage": str(self.storage),
            "mlflow_run": self.mlflow_run,
            "recorded": self.fingerprint,
        }
        return json.dumps(value, indent=1)

    @staticmethod
    def from_json(text: str) -> TrainingSpec:
        """Inverse of to_json."""
        value = json.loads(text)
        params = Params.model_validate(value.pop("params"))
        blocks = {
            name: SYSTEMS[name].Params.model_validate(block) if name in SYSTEMS else block
            for name, block in params.systems.items()
        }
        data, storage = Path(value.pop("data")), Path(value.pop("storage"))
        return TrainingSpec(params=params.model_copy(update={"systems": blocks}), data=data, storage=storage, **value)

    def save(self) -> Path:
        """Writes run_dir/spec.json."""
        path = self.run_dir / "spec.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json())
        return path

    @staticmethod
    def load(path: Path) -> TrainingSpec:
        """Reads a spec.json."""
        return TrainingSpec.from_json(path.read_text())


@dataclass(frozen=True)
class Outcome:
    """What a finished training leaves besides its weights; stored as run_dir/outcome.json."""

    run_dir: Path
    fingerprint: str
    epochs: int
    best_epoch: int
    """Of the last phase, counted from 1 over all phases; the saved weights are this epoch's."""
    best_metric: float | None
    """None where the initial weights are the last, too."""
    metric: str
    """What best_metric measures: val/pck_image_12 or val/loss."""
    seconds: float
    """Spent on training and validation, all attempts together."""
    images_per_second: float
    """Median over the epochs."""
    resumed_from: list[int]
    """Steps of the checkpoints that interrupted attempts went on from."""
    weights_sha256: str
    history: list[dict[str, Any]]
    """One record per epoch, as in history.jsonl."""

    @property
    def weights(self) -> Path:
        """The best weights, as safetensors."""
        return self.run_dir / "model.safetensors"

    def save(self) -> None:
        """Writes outcome.json in one step; its presence says that the training is finished."""
        value = dataclasses.asdict(self)
        del value["run_dir"]
        partial = self.run_dir / "outcome.json.partial"
        partial.write_text(json.dumps(value, indent=1))
        partial.replace(self.run_dir / "outcome.json")

    @staticmethod
    def load(run_dir: Path) -> Outcome:
        """Reads run_dir/outcome.json and checks the weights beside it against their recorded digest."""
        outcome = Outcome(run_dir=run_dir, **json.loads((run_dir / "outcome.json").read_text()))
        if not outcome.weights.exists() or file_sha256(outcome.weights) != outcome.weights_sha256:
            raise TrainingError(
                f"{outcome.weights} is missing or is not the file that {run_dir / 'outcome.json'} recorded "
                f"(sha256 {outcome.weights_sha256[:12]}…); remove {run_dir / 'outcome.json'} to train it again"
            )
        return outcome


def code_digest(system: str) -> str:
    """Hex digest of the source files that decide the trained weights of one system."""
    files = {path for pattern in NUMERIC_CODE for path in ROOT.glob(pattern)} - {ROOT / path for path in HARMLESS_CODE}
    modules = (sys.modules[cls.__module__] for cls in SYSTEMS[system].__mro__ if cls.__module__.startswith("pose."))
    files |= _with_imports(Path(module.__file__) for module in modules if module.__file__)
    return json_sha256({path.relative_to(ROOT).as_posix(): file_sha256(path) for path in files})


def _with_imports(files: Iterable[Path]) -> set[Path]:
    """These files and the modules of pose.systems that they import, transitively."""
    found: set[Path] = set()
    queue = list(files)
    while queue:
        path = queue.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pose.systems."):
                queue.append(ROOT.joinpath(*str(node.module).split(".")).with_suffix(".py"))
    return found
