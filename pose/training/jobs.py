"""A training as a job on a Ray cluster: submit, follow, attach again, take the results.

The job outlives the process that submitted it. The cluster's machines have the program in their image and the prepared
data at the same path. Results come back through `ray.storage_path`; where that is null, the storage (spec.run_dir) must
be a file system that this machine and the cluster share.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pose.errors import ConfigError, DataError, PoseError, TrainingError
from pose.progress import say
from pose.training.spec import RESULTS, Outcome, TrainingSpec

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

T = TypeVar("T")

POLL_SECONDS = 2.0
PATIENCE_SECONDS = 300.0
"""How long the cluster's head may be away (a restart) before the follower gives up; the job goes on without it."""
OVER = ("SUCCEEDED", "FAILED", "STOPPED")


def train_in_job(spec: TrainingSpec) -> Outcome:
    """Trains on the cluster at `training.ray.address` and returns the outcome, whose files are then in spec.run_dir.

    One job at a time per fingerprint: a live one is followed, a finished one's results are taken, a failed one is
    submitted again and resumes. A job whose machine is lost meanwhile is submitted again max_failures times. Raises
    what the training itself refused; TrainingError where a job was stopped by hand, jobs keep being lost, or the
    cluster is away.
    """
    address, tries = spec.params.training.ray.address, spec.params.training.ray.max_failures + 1
    last = ""
    for _ in range(tries):
        if (spec.run_dir / "outcome.json").exists():
            return Outcome.load(spec.run_dir)
        name = current_job(spec)
        job = follow(spec, name)
        status = job.status.value if job else "gone"
        if status == "SUCCEEDED":
            fetch_results(spec)
            return Outcome.load(spec.run_dir)
        if status == "STOPPED":
            raise TrainingError(f"job {name} on {address} was stopped by hand; the same command submits it again")
        if job and (refusal := refusal_of(spec, job)):
            raise refusal
        last = (job.message or status) if job else "the cluster no longer knows it"
        say(f"job {name} was lost ({last})")
    raise TrainingError(
        f"{spec.name}: {tries} jobs in a row were lost on {address}, the last with: {last}. Their logs are in "
        f"{spec.run_dir}; the same command resumes from the checkpoints"
    )


def current_job(spec: TrainingSpec) -> str:
    """Submission id of the job to follow: the live or finished one, else a new attempt."""
    jobs = attempts(spec)
    # A finished job whose results are gone from the storage would be followed in vain for ever.
    if jobs and (jobs[-1].status.value not in OVER or (jobs[-1].status.value == "SUCCEEDED" and has_results(spec))):
        say(f"{spec.name}: attaching to job {jobs[-1].submission_id} ({jobs[-1].status.value})")
        return str(jobs[-1].submission_id)
    name = f"{spec.name}-a{_number(spec, jobs[-1]) + 1 if jobs else 1}"
    try:
        submit(spec, name)
        say(f"{spec.name}: submitted job {name} to {spec.params.training.ray.address}")
    except RuntimeError:
        # Ray refuses a second job of one name: somebody else was quicker, and their job is ours.
        if name not in [job.submission_id for job in attempts(spec)]:
            raise
        say(f"{spec.name}: attaching to job {name}")
    return name


def attempts(spec: TrainingSpec) -> list[JobDetails]:
    """All jobs of this fingerprint that the cluster remembers, oldest first."""
    jobs = asked(spec, lambda client: client.list_jobs())
    ours = [job for job in jobs if (job.submission_id or "").startswith(f"{spec.name}-a")]
    return sorted(ours, key=lambda job: _number(spec, job))


def _number(spec: TrainingSpec, job: JobDetails) -> int:
    return int(str(job.submission_id).removeprefix(f"{spec.name}-a"))


def submit(spec: TrainingSpec, name: str) -> None:
    """Starts the job. Its command and environment hold no secret: Ray shows both to whoever sees the dashboard."""
    ray = spec.params.training.ray.model_copy(update={"address": None})  # there, the cluster is this machine
    training = spec.params.training.model_copy(update={"ray": ray})
    there = replace(spec, params=spec.params.model_copy(update={"training": training}))
    with tempfile.TemporaryDirectory(prefix="pose-job-") as folder:
        (Path(folder) / "spec.json").write_text(there.to_json())
        asked(
            spec,
            lambda client: client.submit_job(
                entrypoint="python -m pose.training spec.json",
                submission_id=name,
                runtime_env={"working_dir": folder},
                metadata={"fingerprint": spec.fingerprint, "system": spec.system},
            ),
        )


def follow(spec: TrainingSpec, name: str) -> JobDetails | None:
    """Says every new line of the job's log until the job is over; None where the cluster forgot it (a lost head)."""
    spec.run_dir.mkdir(parents=True, exist_ok=True)
    while True:
        job = next((job for job in attempts(spec) if job.submission_id == name), None)
        if job is None:
            return None
        over = job.status.value in OVER
        try:
            tell(asked(spec, lambda client: client.get_job_logs(name)), spec.run_dir / f"{name}.log", whole=over)
        except RuntimeError as error:  # the job's machine is lost and its log with it, or it has only just begun
            if over:
                say(f"job {name} is over ({job.status.value}), but Ray no longer has its log: {error}")
        if over:
            return job
        time.sleep(POLL_SECONDS)


def tell(log: str, kept: Path, whole: bool) -> None:
    """Says what is new in a log and keeps it: what is in the file was told by this or an earlier follower.

    A line that is still being written waits until it is whole.
    """
    told = kept.read_text() if kept.exists() else ""
    if not log.startswith(told):  # the job of another cluster that had the same name
        told = ""
    new = log[len(told) :]
    if not whole:
        new = new[: new.rfind("\n") + 1]
    kept.write_text(told + new)
    for line in new.splitlines():
        say(line)


def refusal_of(spec: TrainingSpec, job: JobDetails) -> PoseError | None:
    """The error that the program in the job ended with; None where the job was killed or its machine lost."""
    kinds = {kind.exit_code: kind for kind in (ConfigError, DataError, TrainingError)}
    if job.driver_exit_code not in kinds:
        return None
    kept = spec.run_dir / f"{job.submission_id}.log"
    lines = kept.read_text().strip().splitlines() if kept.exists() else []
    return kinds[job.driver_exit_code](f"{lines[-1] if lines else job.message} (job {job.submission_id})")


def has_results(spec: TrainingSpec) -> bool:
    """Whether a finished job's results can be had."""
    import pyarrow.fs

    if spec.params.training.ray.storage_path is None:
        return (spec.run_dir / "outcome.json").exists()
    files, root = stored_results(spec)
    return all(files.get_file_info(f"{root}/{name}").type == pyarrow.fs.FileType.File for name in RESULTS)


def fetch_results(spec: TrainingSpec) -> None:
    """Copies the results from the cluster's storage to spec.run_dir. TrainingError where they are not there."""
    import pyarrow.fs

    if not has_results(spec):
        where = spec.params.training.ray.storage_path
        raise TrainingError(
            f"{spec.name}: the job succeeded, but its results are not in {where or spec.run_dir}. "
            + ("Is this the cluster's storage?" if where else "Set training.ray.storage_path where no disk is shared")
        )
    if spec.params.training.ray.storage_path is None:
        return
    files, root = stored_results(spec)
    here = pyarrow.fs.LocalFileSystem()
    for name in RESULTS:
        partial = spec.run_dir / f"{name}.partial"
        pyarrow.fs.copy_files(f"{root}/{name}", str(partial), source_filesystem=files, destination_filesystem=here)
        partial.replace(spec.run_dir / name)


def stored_results(spec: TrainingSpec) -> tuple:
    """File system and path where pose.training.ray leaves the results of a training that travels."""
    import pyarrow.fs

    storage = spec.params.training.ray.storage_path
    assert storage is not None
    # A plain path is allowed too: a mounted file system.
    files, root = pyarrow.fs.FileSystem.from_uri(storage if "://" in storage else Path(storage).resolve().as_uri())
    return files, f"{root.rstrip('/')}/{spec.name}/results"


def asked(spec: TrainingSpec, question: Callable[[JobSubmissionClient], T]) -> T:
    """The cluster's answer. A head that is away is asked again for a while, then TrainingError."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    address = spec.params.training.ray.address
    if not str(address).startswith(("http://", "https://")):
        raise ConfigError(f"training.ray.address is {address!r}, expected a Ray dashboard like http://ray-head:8265")
    given_up = time.monotonic() + PATIENCE_SECONDS
    told = False
    while True:
        try:
            return question(JobSubmissionClient(address))
        except AuthenticationError as error:
            raise ConfigError(
                f"the Ray cluster at {address} refuses this client: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the "
                f"cluster's token ({str(error).splitlines()[0]})"
            ) from error
        except (OSError, RuntimeError) as error:
            if not _may_pass(error):
                raise
            if time.monotonic() > given_up:
                raise TrainingError(
                    f"{spec.name}: the Ray cluster at {address} has not answered for {PATIENCE_SECONDS:g} s ({error}). "
                    f"A job that runs there goes on; the same command follows it again"
                ) from error
            if not told:
                say(f"{spec.name}: Ray at {address} is not ready ({error}), trying for {PATIENCE_SECONDS:g} s")
                told = True
            time.sleep(POLL_SECONDS)


def _may_pass(error: Exception) -> bool:
    """A lost connection is an OSError, of Ray's client and of requests alike; a head that has just begun says so."""
    return isinstance(error, OSError) or "try again later" in str(error)
