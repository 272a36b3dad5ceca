"""What each task of train-all does, as plain functions: from a specification to a registered version.

Every step leaves its result in the training's own directory or in the registry, keyed by what it read, and finds it
there again. Nothing here knows Prefect.
"""

from __future__ import annotations

import json
import shutil
import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import yaml

from flows.data import DatasetVersion
from pose import fitting, lineage, training
from pose.alone import alone
from pose.config import ROOT, Params
from pose.data import detections
from pose.data.scenes import SceneSplit
from pose.data.shards import Split, describe
from pose.digests import file_sha256, json_sha256, tree_sha256
from pose.errors import RegistryError, TrainingError
from pose.evaluate import evaluate_system
from pose.evaluation import Evaluation
from pose.export import export
from pose.inference.weights import FACTS, trained
from pose.people import People
from pose.predictions import detect as find_boxes
from pose.progress import say
from pose.registry import Registry, RunLog, Version
from pose.systems import SYSTEMS
from pose.training import Outcome, TrainingSpec

EVALUATING_CODE = (
    "pose/metrics/*.py", "pose/evaluate*.py", "pose/evaluation.py", "pose/predictions.py", "pose/protocol.py",
    "pose/decoding/oks_nms.py", "pose/decoding/pose_nms.py", "pose/decoding/settling.py", "pose/data/detections.py",
    "pose/export*.py", "pose/card.py", "pose/bundle.py", "pose/registry/packaging.py", "pose/people.py",
    "pose/found.py", "pose/inference/weights.py", "pose/fitting.py",
)  # fmt: skip
"""Source files that decide what a registered bundle holds besides its trained weights."""

DETECTING_CODE = ("pose/predictions.py", "pose/data/detections.py", "pose/people.py")
"""Source files that decide a detector's boxes, besides those that decide its trained weights."""

EXPORTING_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

_torch = threading.Lock()
"""Held by whoever runs a network in this process. Architectures side by side are threads: torch.export patches every
module while it traces, and two trainings would share one stream of random numbers. Trainings on Ray's workers go on
meanwhile: where `parallel` is above one, a bundle's latency is that of a busy machine.
"""


@dataclass(frozen=True)
class Job:
    """One architecture of one run."""

    system: str
    params: Params
    dataset: DatasetVersion
    lineage: dict[str, str]
    detector: Job | None = None
    """The person detector of the same run, in whose boxes a system of single people is evaluated as well."""
    awaits: Job | None = None
    """The same, where the training waits for its boxes on the training split."""

    @cached_property
    def spec(self) -> TrainingSpec:
        """What is to be trained."""
        data = self.dataset
        return TrainingSpec(self.system, self.params, data.directory, data.data_hash, self.params.storage_path)

    @cached_property
    def release(self) -> str:
        """Identity of the registered version: the training's fingerprint, and how it is evaluated and exported."""
        return json_sha256(
            {
                "training": self.spec.fingerprint,
                "evaluation": self.params.evaluation.model_dump(mode="json"),
                "export": self.params.export.model_dump(mode="json"),
                "boxes": self._boxes_identity,
                "code": tree_sha256(ROOT, EVALUATING_CODE),
                "versions": {name: version(name) for name in EXPORTING_PACKAGES},
            }
        )

    @property
    def plan(self) -> str:
        """Identity before anything is trained: the release, or where boxes are awaited what that will depend on."""
        if self.awaits is None:
            return self.release
        return json_sha256([self.with_boxes(None).release, self.awaits.release])

    def with_boxes(self, path: Path | None) -> Job:
        """The job with the boxes that it has waited for."""
        params = self.params.systems[self.system].with_boxes(path)
        systems = self.params.systems | {self.system: params}
        fitted = {} if self.awaits is None else {"proposals": f"{self.awaits.system} {self.awaits.spec.fingerprint}"}
        whole = self.params.model_copy(update={"systems": systems})
        return replace(self, params=whole, awaits=None, lineage=self.lineage | fitted)

    @property
    def _boxes_identity(self) -> str | None:
        given = self.params.detections_path
        if given is not None:
            return file_sha256(given)
        return self.detector.release if self.detector is not None else None

    @property
    def detections(self) -> Path | None:
        """The file of person boxes this job is evaluated in besides the annotated ones."""
        given = self.params.detections_path
        if given is not None:
            return given
        return self.detector.own_detections if self.detector is not None else None

    @property
    def own_detections(self) -> Path:
        """Where a detector's job leaves its boxes on the evaluation split."""
        return self.params.storage_path / "detections" / f"{self.system}-{self.release[:12]}.json"

    @property
    def training_detections(self) -> Path:
        """Where a detector's job leaves its boxes on the training split, which depend on its training alone."""
        key = json_sha256([self.spec.fingerprint, tree_sha256(ROOT, DETECTING_CODE)])
        return self.params.storage_path / "detections" / f"{self.system}-{key[:12]}-train.json"

    @property
    def model(self) -> str:
        """Name of the registered model."""
        return f"pose-{self.system}"

    @property
    def bundle(self) -> Path:
        """Where this job builds its bundle."""
        return self.params.storage_path / "bundles" / f"{self.system}-{self.release[:12]}"

    @property
    def split(self) -> Split | SceneSplit:
        """The images that all systems are compared on, in the view of this one."""
        opened = SceneSplit if SYSTEMS[self.system].view == "scene" else Split
        return opened.open(self.dataset.directory, self.params.evaluation.split)


def registry(params: Params) -> Registry:
    """The registry this configuration speaks to."""
    return Registry(params.storage_path)


def catch_up(params: Params) -> None:
    """Gives MLflow what it missed while it was away, and ends the runs of lost processes."""
    try:
        for run in registry(params).sync():
            say(f"MLflow: logged what it had missed of run {run}")
    except RegistryError as error:
        say(f"MLflow is out of reach, records are kept for later: {error}")


def registered(job: Job) -> Version | None:
    """The version this job would end in, where it exists and is whole. None also while MLflow cannot be asked."""
    try:
        return registry(job.params).finished(job.model, job.release, tag="release")
    except RegistryError as error:
        say(f"{job.system}: cannot ask for a finished version, going on without: {error}")
        return None


def start_run(job: Job, parent: RunLog) -> RunLog:
    """The job's record: its parameters, its lineage and the audit's counts."""
    tags = {**job.lineage, "architecture": job.system, "release": job.release, "parent": parent.path.stem}
    if (parent_run := parent.run_id) is not None:
        tags["mlflow.parentRunId"] = parent_run
    resolved = job.params.model_dump(mode="json")
    resolved = {**resolved, "data": resolved["data"][job.params.dataset], "systems": resolved["systems"][job.system]}
    run = registry(job.params).start_run(job.spec.name, job.spec.fingerprint, tags, resolved)
    run.metrics({"audit": findings(job.dataset.directory)}, step=0)
    return run


def finishing(job: Job) -> AbstractContextManager[None]:
    """Lets one process at a time evaluate, export and register a job: another may have the same one in hand."""
    return alone(job.bundle.with_name(f"{job.bundle.name}.lock"), f"{job.system} is being finished by another process")


def findings(prepared: Path) -> dict[str, int]:
    """How many findings of each kind the audit of a prepared dataset had, and how many people were left out."""
    info = describe(prepared)
    return {**info.findings, "excluded": info.excluded}


def train(job: Job, run: RunLog) -> Outcome:
    """Trains, or finds the finished training; every epoch goes to the record as it ends."""
    run.follow(job.spec.run_dir / "history.jsonl")
    training.say_where_crops_are_coarse(job.spec)
    with _torch if job.params.training.ray.workers == 0 else nullcontext():
        outcome = training.run(replace(job.spec, mlflow_run=run.run_id))
    run.metrics({"training": {"seconds": outcome.seconds, "images_per_second": outcome.images_per_second}}, step=0)
    return outcome


def fits(job: Job) -> bool:
    """Whether the job's system has something to fit once it is trained."""
    return fitting.needed(job.spec)


def fit(job: Job, outcome: Outcome) -> Path:
    """What the trained system fits to the training split; returns the folder that has it."""
    with _torch:
        return fitting.fit(job.spec, outcome)


def evaluate(job: Job, outcome: Outcome) -> Path:
    """Measures the trained network on the evaluation split; returns the directory of its evaluation."""
    directory = job.bundle.with_name(f"{job.bundle.name}.evaluation")
    if not (directory / "predictions.npz").exists():
        with _torch:
            evaluation, predictions = evaluate_system(
                trained(outcome.run_dir).system,
                job.dataset.directory,
                job.params.evaluation,
                detections=job.detections,
            )
        evaluation.save(directory)
        predictions.save(directory / "predictions.npz")
    return directory


def detect(job: Job, version: Version) -> Path:
    """The registered detector's boxes on the evaluation split, as the standard JSON list."""
    if not job.own_detections.exists():
        found = People.load(registry(job.params).bundle(version.uri) / "evaluation" / "predictions.npz")
        _write(job.own_detections, detections.ordered(found.image_ids, found.boxes, found.person_scores))
    return job.own_detections


def detect_in_training(job: Job, version: Version | None) -> Path:
    """The detector's boxes on the training split, found by its network unless they are there already.

    version: what it was registered as; None: its training folder has the network. Raises TrainingError where there is
    none, and where it finds nobody.
    """
    path = job.training_detections
    with alone(path.with_suffix(".lock"), f"{job.system} is looking through the training split in another process"):
        if not path.exists():
            images, loading = SceneSplit.open(job.dataset.directory, "train"), job.params.training.loader_threads
            folder = job.spec.run_dir if version is None else registry(job.params).bundle(version.uri)
            with _torch:
                found = find_boxes(trained(folder).system, images, job.spec.recipe.batch_size, loading)
            if not len(found.boxes):
                raise TrainingError(f"{folder} finds nobody in the training split of {job.dataset.directory}")
            _write(path, found)
    return path


def _write(path: Path, found: detections.Detections) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    detections.write(partial, found)
    partial.replace(path)


def export_bundle(job: Job, outcome: Outcome, evaluation: Path) -> Path:
    """Exports the network and puts beside it all that a registered version says of itself."""
    if (job.bundle / "card.md").exists():
        return job.bundle
    with _torch:
        source = trained(outcome.run_dir)
        export(
            job.system, source.system, source.weights, job.split, source.crop, job.bundle, job.params.export,
            threads=job.params.training.threads,
        )  # fmt: skip
    shutil.copytree(evaluation, job.bundle / "evaluation", dirs_exist_ok=True)
    shutil.copy(outcome.run_dir / "history.jsonl", job.bundle)
    if source.system.fits:
        shutil.copy(source.weights.with_name(FACTS), job.bundle)
    resolved = job.params.model_dump(mode="json")
    (job.bundle / "params.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
    (job.bundle / "training.json").write_text(json.dumps(_training_facts(outcome), indent=1) + "\n")
    from pose.card import write_card

    write_card(
        job.bundle, source.system.card, Evaluation.load(evaluation), describe(job.dataset.directory), job.lineage
    )
    return job.bundle


def _training_facts(outcome: Outcome) -> dict:
    names = ("fingerprint", "epochs", "best_epoch", "best_metric", "metric", "seconds", "images_per_second")
    return {name: getattr(outcome, name) for name in names}


def register(job: Job, bundle: Path, run: RunLog, parent: RunLog) -> Version:
    """Makes the bundle a version of `pose-<system>`."""
    evaluation = Evaluation.load(bundle / "evaluation")
    tags = {
        **job.lineage,
        "architecture": job.system,
        "fingerprint": job.spec.fingerprint,
        "release": job.release,
        "parent": parent.path.stem,
        "split": f"{job.params.evaluation.split} of {len(evaluation.image_ids)} images",
        "intervals": json.dumps(evaluation.intervals),
        "protocols": json.dumps({key: {"id": p.id, **p.parts()} for key, p in evaluation.protocols.items()}),
        "params": yaml.safe_dump(job.params.systems[job.system].model_dump(mode="json")),
    }
    return registry(job.params).register(bundle, job.model, run, tags, evaluation.metrics)


@dataclass(frozen=True)
class Reevaluate:
    """Gives an older model's figures on the images of today, in the boxes of today."""

    params: Params
    dataset: DatasetVersion
    detections: Path | None
    """The file that challengers are evaluated in besides annotated boxes, where there is one."""

    def __call__(self, bundle: Path) -> Evaluation:
        """Evaluates the bundle's network."""
        system = trained(bundle).system
        return evaluate_system(system, self.dataset.directory, self.params.evaluation, detections=self.detections)[0]


def run_lineage(params: Params, dataset: DatasetVersion, command: str) -> dict[str, str]:
    """The lineage that all architectures of a run share."""
    return lineage.collect(params, dataset.data_hash, command)
