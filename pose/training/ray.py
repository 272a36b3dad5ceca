"""The distributed shell: the same loop on Ray Train's workers. The only file that knows Ray.

On one machine or a shared file system every worker sees spec.run_dir and the loop resumes by itself from there. With
`ray.storage_path` the workers have no common disk: checkpoints travel through Ray to that storage and back.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.result import Result
from ray.train.v2.torch.torch_trainer import TorchTrainer

from pose.config import ROOT, RayParams
from pose.errors import PoseError, TrainingError
from pose.progress import say
from pose.training import loop
from pose.training.distributed import World
from pose.training.follow import following
from pose.training.spec import RESULTS, TrainingSpec

START_TIMEOUT_S = 200
"""Ray's own 60 s is too short for a busy machine where every worker first imports torch."""
CONTROLLER_FAILURES = 3
"""Ray retries a worker group that cannot start without end unless told otherwise."""
RESULTS_DIR = "results"

STARTS = 3

_starting = threading.Lock()


def train_on_ray(spec: TrainingSpec) -> None:
    """Trains on Ray's workers and leaves the results in spec.run_dir, as the loop does.

    Workers that die are replaced and go on from the last checkpoint. What the loop itself refuses (PoseError) is
    raised here as it is and never retried; TrainingError where Ray gives up.
    """
    params = spec.params.training.ray
    # Workers may start in another directory.
    data, storage = spec.data.resolve(), spec.storage.resolve()
    spec = dataclasses.replace(spec, data=data, storage=storage, recorded=spec.fingerprint)
    spec.save()
    connect(params, min(spec.params.parallel, len(spec.params.architectures)))
    trainer = TorchTrainer(
        _train_on_worker,
        train_loop_config={"spec": spec.to_json()},
        torch_config=TorchConfig(backend="nccl" if params.gpus_per_worker else "gloo"),
        scaling_config=_scaling(params),
        run_config=RunConfig(
            name=spec.name,
            storage_path=params.storage_path or str(spec.storage / "ray"),
            failure_config=FailureConfig(
                max_failures=params.max_failures, controller_failure_limit=CONTROLLER_FAILURES
            ),
            checkpoint_config=CheckpointConfig(num_to_keep=spec.params.training.checkpoint.keep),
        ),
    )
    try:
        with following(spec.run_dir / "history.jsonl", spec.name):
            result = cast(Result, trainer.fit())
    except ray.train.TrainingFailedError as error:
        raise TrainingError(
            f"{spec.name}: Ray gave up after {params.max_failures} restarts ({_last_line(error)}). "
            f"Checkpoints are intact; the same command resumes from them"
        ) from error
    refusal = result.return_value
    if refusal is not None:
        raise refusal
    if params.storage_path is not None:
        assert result.checkpoint is not None
        with result.checkpoint.as_directory() as directory:
            for name in RESULTS:
                shutil.copy2(Path(directory) / name, spec.run_dir / name)


def connect(params: RayParams, trainings: int = 1) -> None:
    """Joins the cluster of RAY_ADDRESS, or starts a private one on this machine, once per process.

    The private one has CPUs for so many trainings side by side: one that had to wait for another's would give up.
    """
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = str(params.poll_seconds)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_TIMEOUT_S))
    with _starting:
        if ray.is_initialized():
            return
        env = {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
        if address := os.environ.get("RAY_ADDRESS"):
            # A cluster's nodes have the program in their image; this machine's path would mean nothing there.
            ray.init(address=address, log_to_driver=params.storage_path is not None)
            return
        cores = len(os.sched_getaffinity(0))
        wanted = trainings * params.workers * params.cpus_per_worker
        if wanted > cores:
            at_once = f" for {trainings} trainings at once" if trainings > 1 else ""
            say(f"training.ray asks for {wanted:g} CPUs{at_once} and this machine has {cores}: its workers share them")
        for attempt in range(1, STARTS + 1):
            try:
                _start(num_cpus=max(cores, math.ceil(wanted)), log_to_driver=params.storage_path is not None, env=env)
                return
            except Exception as error:  # Ray raises a bare Exception where its processes take more than 30 s
                ray.shutdown()
                if attempt == STARTS:
                    raise TrainingError(
                        f"Ray did not start on this machine in {STARTS} attempts ({_last_line(error)}); it may be "
                        f"overloaded. With `--set training.ray.workers=0` the training needs no Ray"
                    ) from error
                say("Ray did not start; trying again")


def _start(num_cpus: int, log_to_driver: bool, env: dict[str, str]) -> None:
    """A private Ray, started from a thread that lives as long as this process.

    Linux kills Ray's processes when the thread that forked them ends, and a minute later Ray ends a driver that has
    lost them: the pool of threads that trains architectures side by side is gone before the report is written.
    """
    started: Future[None] = Future()

    def start_and_stay() -> None:
        try:
            # "local" always: without it Ray joins whatever cluster runs on this machine.
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=log_to_driver,
                runtime_env={"env_vars": env},
            )
        except Exception as error:
            started.set_exception(error)
        else:
            started.set_result(None)
            threading.Event().wait()

    threading.Thread(target=start_and_stay, name="ray", daemon=True).start()
    started.result()


def _scaling(params: RayParams) -> ScalingConfig:
    resources = {"CPU": params.cpus_per_worker}
    if params.gpus_per_worker:
        resources["GPU"] = params.gpus_per_worker
    fewest = params.min_workers or params.workers
    return ScalingConfig(
        num_workers=(fewest, params.workers) if fewest < params.workers else params.workers,
        use_gpu=params.gpus_per_worker > 0,
        resources_per_worker=resources,
    )


def _train_on_worker(config: dict[str, Any]) -> PoseError | None:
    """One rank. Returns the loop's refusal instead of raising it: all ranks have it, and a retry would not help."""
    spec = TrainingSpec.from_json(config["spec"])
    context = ray.train.get_context()
    world = World(
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        local_size=context.get_local_world_size(),
        device=ray.train.torch.get_device() if spec.params.training.ray.gpus_per_worker else torch.device("cpu"),
    )
    travelling = spec.params.training.ray.storage_path is not None
    if travelling:
        spec = dataclasses.replace(spec, storage=Path(tempfile.mkdtemp(prefix="pose-")))
        _fetch_checkpoint(spec)
        if (spec.run_dir / "outcome.json").exists():
            return None

    def report(record: dict[str, Any], checkpoint: Path | None) -> None:
        """Ray's report is a barrier that waits for a poll, so without a checkpoint to carry only epochs are told."""
        if not travelling and not record:
            return
        carried = checkpoint if travelling and world.main else None
        _report({"epoch": record.get("epoch", 0), **record.get("val", {})}, carried)

    try:
        loop.train(spec, world, report)
    except PoseError as refusal:
        return refusal
    if travelling:
        _report({"finished": 1}, _results(spec) if world.main else None)
    return None


def _report(metrics: dict[str, Any], directory: Path | None) -> None:
    if directory is None:
        ray.train.report(metrics)
        return
    checkpoint = ray.train.Checkpoint.from_directory(str(directory))
    ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=directory.name)


def _fetch_checkpoint(spec: TrainingSpec) -> None:
    """Lays Ray's newest committed checkpoint where the loop looks for its own, whose manifest it then checks.

    Where the training was finished already and only its driver was lost, lays the results there instead.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return
    name = Path(checkpoint.path).name
    checkpoint.to_directory(str(spec.run_dir if name == RESULTS_DIR else spec.run_dir / "checkpoints" / name))


def _results(spec: TrainingSpec) -> Path:
    """A directory of the finished training's files."""
    directory = spec.run_dir / RESULTS_DIR
    directory.mkdir(exist_ok=True)
    for name in RESULTS:
        shutil.copy2(spec.run_dir / name, directory / name)
    return directory


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
