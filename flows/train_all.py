"""Flow train-all: data -> per architecture [train -> fit -> evaluate -> export -> register] -> promote -> report.

A person detector goes first, where others are evaluated in its boxes or trained with them.
"""

from __future__ import annotations

import errno
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner
from rich.console import Console

from flows import results, steps, watching
from flows.data import DatasetBusyError, DatasetVersion, bring_up_to_date
from flows.steps import Job
from pose import config_loading
from pose.config import Params
from pose.digests import json_sha256
from pose.errors import ConfigError, PoseError, RegistryAwayError, TrainingError
from pose.progress import say
from pose.registry import Decision, RunLog, Version, comparable, left_out, whoami
from pose.report import results_table
from pose.systems import DETECTOR, SYSTEMS
from pose.training import Outcome

OF_FILES = frozenset(
    {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EROFS, errno.ENOSPC,
     errno.EDQUOT}
)  # fmt: skip
"""Numbers of errors of files and disks, which are there the next time, too."""


def _busy(task: Any, run: Any, state: State) -> bool:
    """Another process prepares the same data: wait for it. A bad archive stays bad."""
    return isinstance(_error(state), DatasetBusyError)


def _passing(task: Any, run: Any, state: State) -> bool:
    """A lost connection may come back. Ray has restarted its workers by itself before it gives up; the next run
    resumes. A bug or an error of ours will be the same next time, and so will a file that is not there or a full disk.
    """
    error = _error(state)
    return _may_pass(error) or type(error).__module__.startswith("ray.")


def _registry_away(task: Any, run: Any, state: State) -> bool:
    error = _error(state)
    return isinstance(error, RegistryAwayError) or _may_pass(error)


def _may_pass(error: Any) -> bool:
    """The network's errors are OSErrors, with many numbers and, of requests, with none."""
    return isinstance(error, OSError) and error.errno not in OF_FILES


def _error(state: State) -> Any:
    return state.result(raise_on_failure=False)


@task(cache_policy=NO_CACHE, retries=20, retry_delay_seconds=15, retry_condition_fn=_busy)
def data(dataset: str) -> DatasetVersion:
    """Fetches and prepares what changed."""
    version = bring_up_to_date(dataset)
    say(f"data: {dataset} {'prepared' if version.changed else 'unchanged, skipped'}, hash {version.data_hash}")
    return version


@task(cache_policy=NO_CACHE, task_run_name="train-{job.system}", retries=2, retry_delay_seconds=[20, 120],
      retry_condition_fn=_passing)  # fmt: skip
def train(job: Job, run: RunLog) -> Outcome:
    """Trains one architecture, or goes on where it was interrupted."""
    epochs = sum(phase.epochs for phase in job.spec.recipe.phases)
    with watching.progress(job.system, job.spec.run_dir / "history.jsonl", epochs):
        return steps.train(job, run)


@task(cache_policy=NO_CACHE, task_run_name="fit-{job.system}")
def fit(job: Job, outcome: Outcome) -> Path:
    """Fits to the training split what needs the trained network; for the systems that have such."""
    return steps.fit(job, outcome)


@task(cache_policy=NO_CACHE, task_run_name="evaluate-{job.system}")
def evaluate(job: Job, outcome: Outcome) -> Path:
    """Measures it on the images that all systems are compared on."""
    return steps.evaluate(job, outcome)


@task(cache_policy=NO_CACHE, task_run_name="export-{job.system}")
def export(job: Job, outcome: Outcome, evaluation: Path) -> Path:
    """ONNX and torch.export, held against the network."""
    return steps.export_bundle(job, outcome, evaluation)


@task(cache_policy=NO_CACHE, task_run_name="register-{job.system}", retries=2, retry_delay_seconds=[10, 60],
      retry_condition_fn=_registry_away)  # fmt: skip
def register(job: Job, bundle: Path, run: RunLog, parent: RunLog) -> Version:
    """Makes it a version of its registered model."""
    return steps.register(job, bundle, run, parent)


@task(cache_policy=NO_CACHE, task_run_name="detect-{job.system}", retries=2, retry_delay_seconds=[10, 60],
      retry_condition_fn=_registry_away)  # fmt: skip
def detect(job: Job, version: Version | None) -> Path:
    """A detector's boxes on the training split, for trainings that wait for them; None: it could not be registered."""
    return steps.detect_in_training(job, version)


@task(cache_policy=NO_CACHE, task_run_name="{job.system}")
def architecture(job: Job, parent: RunLog) -> tuple[Version, bool]:
    """One architecture from its specification to a registered version, and whether it was there already."""
    found = steps.registered(job)
    if found is not None:
        say(f"{job.system}: nothing changed since {found.uri}, skipped")
        return found, True
    run = steps.start_run(job, parent)
    status = "FAILED"
    try:
        outcome = train(job, run)
        with steps.finishing(job):
            version = steps.registered(job)  # by another run of the same, which this one has waited for
            if version is None:
                if steps.fits(job):
                    fit(job, outcome)
                version = register(job, export(job, outcome, evaluate(job, outcome)), run, parent)
        status = "FINISHED"
    finally:
        run.finish(status)
    say(f"{job.system}: registered as {version.uri}")
    return version, False


def side_by_side(jobs: Sequence[Job], parent: RunLog, parallel: int) -> dict[str, Any]:
    """All architectures, so many at a time; by name, each one's version or its error."""
    runner: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=parallel)
    with runner:
        futures = {job.system: runner.submit(architecture, {"job": job, "parent": parent}) for job in jobs}
        wait(list(futures.values()))
        return {name: future.result(raise_on_failure=False) for name, future in futures.items()}


def detector_first(jobs: Sequence[Job], parent: RunLog, parallel: int) -> dict[str, Any]:
    """As side_by_side, but a person detector goes before those who are evaluated in its boxes or wait for them."""
    detector = next((d for job in jobs for d in (job.detector, job.awaits) if d is not None), None)
    if detector is None:
        return side_by_side(jobs, parent, parallel)
    first = side_by_side([detector], parent, 1)
    found = first[detector.system]
    rest = [job for job in jobs if job.system != detector.system]
    if any(job.detector is not None for job in rest):
        if isinstance(found, tuple):
            say(f"{detector.system}: boxes for the others are in {steps.detect(detector, found[0])}")
        else:
            say(f"{detector.system} failed; the others are evaluated in annotated boxes alone")
            rest = [replace(job, detector=None) for job in rest]
    rest, lost = _with_awaited_boxes(rest, detector, found)
    return first | (side_by_side(rest, parent, parallel) if rest else {}) | lost


def _with_awaited_boxes(jobs: Sequence[Job], detector: Job, found: Any) -> tuple[list[Job], dict[str, TrainingError]]:
    """The jobs that can be trained, and by name why others cannot: the detector's training, or its look at the training
    split, failed. A detector that is trained but could not be registered has boxes, too.
    """
    if all(job.awaits is None for job in jobs):
        return list(jobs), {}
    version = found[0] if isinstance(found, tuple) else None
    boxes = _error(detect(detector, version, return_state=True))
    if version is None and not isinstance(boxes, Path):
        boxes = found
    if isinstance(boxes, Path):
        say(f"{detector.system}: boxes on the training split are in {boxes}")
        return [job if job.awaits is None else job.with_boxes(boxes) for job in jobs], {}
    why = f"it waits for the boxes of {detector.system} on the training split, and there are none: {_said(boxes)}"
    return [job for job in jobs if job.awaits is None], {
        job.system: TrainingError(why) for job in jobs if job.awaits is not None
    }


@task(cache_policy=NO_CACHE)
def promote(
    params: Params, dataset: DatasetVersion, versions: Sequence[Version], boxes: Path | None
) -> tuple[dict[str, Decision], dict[str, PoseError]]:
    """Each version against its model's champion, then the best of all against the dataset's.

    boxes: the detections that this run's systems were evaluated in. A champion is measured in the same. Returns the
    decisions and, where none could be come to, why; both by model name. Another run decides those.
    """
    registry = steps.registry(params)
    again = steps.Reevaluate(params, dataset, boxes)
    how = (params.promotion, whoami(), f"train-all on {params.dataset}", again)
    asked: dict[str, Callable[[], Decision]] = {
        version.name: partial(registry.promote, version.name, version.version, *how) for version in versions
    }
    for uri, why in left_out(versions, params.promotion.metric).items():
        say(f"{uri} does not compete for pose-{params.dataset}: {why}")
    if comparable(versions, params.promotion.metric):
        asked[f"pose-{params.dataset}"] = partial(registry.promote_dataset, params.dataset, versions, *how)
    else:
        say(f"pose-{params.dataset} keeps its champion, if it has one: nobody competes for it")
    decisions: dict[str, Decision] = {}
    undecided: dict[str, PoseError] = {}
    for model, decide in asked.items():
        try:
            decision = decisions[model] = decide()
        except PoseError as error:
            undecided[model] = error
            say(f"{model} keeps its champion, if it has one: {error}")
            continue
        verdict = "promoted" if decision.promoted else "kept back"
        say(f"{decision.model}/{decision.version} {verdict}: {decision.reason}")
    return decisions, undecided


@task(cache_policy=NO_CACHE)
def report(results: results.Results, run: RunLog) -> Path:
    """The page, beside the run and in MLflow."""
    return results.write_report(run)


@dataclass(frozen=True)
class Summary:
    """What a run of train-all came to."""

    versions: dict[str, str]
    """URI of the version of each architecture."""
    skipped: list[str]
    """Architectures in which nothing had changed."""
    champion: str | None
    """What a consumer loads; None where nothing has beaten the mean pose yet."""
    report: Path


@flow(name="train-all", log_prints=True, retries=0)
def train_all(profile: str | None = None, overrides: Sequence[str] = ()) -> Summary:
    """Retrains, evaluates alike and registers every architecture; promotes what is surely better.

    profile: a name in infra/profiles/; overrides: `a.b=value` changes to params.yaml. Raises ConfigError before
    anything starts, DataError for bad data, and TrainingError at the end, naming what failed.
    """
    params = config_loading.load(profile, overrides)
    steps.catch_up(params)
    dataset = data(params.dataset)
    jobs = _jobs(params, dataset, profile, overrides)
    _mind_missing_boxes(jobs)
    parent = _parent_run(params, jobs)
    status = "FAILED"
    try:
        outcomes = detector_first(jobs, parent, params.parallel)
        finished = {name: got for name, got in outcomes.items() if isinstance(got, tuple)}
        failures = {name: got for name, got in outcomes.items() if not isinstance(got, tuple)}
        versions = [version for version, _ in finished.values()]
        decisions, undecided = promote(params, dataset, versions, _boxes(jobs)) if finished else ({}, {})
        shown = results.Results(params, dataset, jobs[0].lineage["command"], finished, failures, decisions)
        page = report(shown, parent)
        _publish(shown, page)
        if failures or undecided:
            raise TrainingError(_named(failures, undecided))
        status = "FINISHED"
    finally:
        parent.finish(status)
    return Summary(
        {name: version.uri for name, (version, _) in finished.items()},
        [name for name, (_, reused) in finished.items() if reused],
        shown.champion,
        page,
    )


def _jobs(params: Params, dataset: DatasetVersion, profile: str | None, overrides: Sequence[str]) -> list[Job]:
    words = ["pose", "train-all", *(["--profile", profile] if profile else [])]
    words += [word for override in overrides for word in ("--set", override)]
    lineage = steps.run_lineage(params, dataset, shlex.join(words))
    jobs = {system: Job(system, params, dataset, lineage) for system in params.architectures}
    detector = jobs.get(DETECTOR)
    if detector is not None and params.dataset_params.crop.view == "person" and params.evaluation.detections is None:
        jobs |= {name: replace(job, detector=detector) for name, job in jobs.items() if SYSTEMS[name].view == "person"}
    return [_waiting(job, detector) if params.systems[name].awaits else job for name, job in jobs.items()]


def _waiting(job: Job, detector: Job | None) -> Job:
    """A job that asks for the detector's boxes on the training split. ConfigError where they would not reach it."""
    params, ray = job.params, job.params.training.ray
    if params.dataset_params.crop.view != "person":
        return job.with_boxes(None)  # whole images are seen, whatever the boxes
    if ray.address is not None and ray.storage_path is not None:
        raise ConfigError(
            f"systems.{job.system}.{params.systems[job.system].awaits} asks for boxes that are found on this machine, "
            f"and training.ray.storage_path says that the cluster at {ray.address} shares no disk with it; name a file "
            f"of detections that the cluster's machines have, or null"
        )
    return replace(job, awaits=detector)


def _mind_missing_boxes(jobs: Sequence[Job]) -> None:
    """Says once who has no figures in detected boxes, and why."""
    params = jobs[0].params
    without = [job.system for job in jobs if SYSTEMS[job.system].view == "person" and job.detections is None]
    if without and params.dataset_params.crop.view == "person":
        say(
            f"{', '.join(without)}: evaluated in annotated boxes alone; for figures in detected boxes beside these add "
            f"{DETECTOR} to `architectures`, or name a file of detections in `evaluation.detections`"
        )


def _boxes(jobs: Sequence[Job]) -> Path | None:
    """The detections that the jobs were evaluated in; None without any, as where the detector failed."""
    return next((job.detections for job in jobs if job.detections is not None and job.detections.exists()), None)


def _parent_run(params: Params, jobs: Sequence[Job]) -> RunLog:
    """The record of the whole run; the same inputs are the same run."""
    resolved = params.model_dump(mode="json")
    key = json_sha256({job.system: job.plan for job in jobs})
    tags = {**jobs[0].lineage, **{f"release.{job.system}": job.release for job in jobs if job.awaits is None}}
    run = steps.registry(params).start_run(f"train-all-{params.dataset}", key, tags, resolved)
    run.metrics({"audit": steps.findings(jobs[0].dataset.directory)}, step=0)
    return run


def _publish(shown: results.Results, page: Path) -> None:
    """The table on the terminal; table, links and verdict as Prefect artifacts."""
    create_table_artifact(table=shown.rows(), key="results", description=f"train-all on {shown.params.dataset}")
    create_link_artifact(link=page.as_uri(), link_text="report", key="report")
    create_markdown_artifact(markdown=shown.markdown(page), key="summary")
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)
    console.print(results_table(shown.entries))
    for label, place in shown.places(page).items():
        console.print(f"{label:<10} {place}", soft_wrap=True)


def _named(failures: dict[str, Any], undecided: dict[str, Any]) -> str:
    reasons = {"architecture(s) failed and the others were kept": failures, "promotion(s) failed": undecided}
    parts = []
    for what, lost in reasons.items():
        if lost:
            listed = "; ".join(f"{name}: {_said(error)}" for name, error in lost.items())
            parts.append(f"{len(lost)} {what}: {listed}")
    return ". ".join(parts)


def _said(error: Any) -> str:
    """An error of ours in its own words; a bug with its type, which is half of what it says."""
    return str(error) if isinstance(error, PoseError) else f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    train_all()
