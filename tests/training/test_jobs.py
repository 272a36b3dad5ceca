"""Jobs on a cluster: one per fingerprint, followed, attached to again; with a fake cluster, and on a real one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

import pose.training
from pose.errors import ConfigError, DataError, TrainingError
from pose.training import jobs
from pose.training.loop import train
from pose.training.spec import Outcome, TrainingSpec

ADDRESS = "http://ray-head:8265"


@dataclass
class Cluster:
    """Stands for the job server: what was submitted, and what each look at a job finds."""

    jobs: list = field(default_factory=list)
    logs: dict[str, str] = field(default_factory=dict)
    submitted: list[dict] = field(default_factory=list)
    on_submit: Callable[[str, TrainingSpec], None] = lambda name, spec: None
    away: list[Exception] = field(default_factory=list)
    """What the next requests meet instead of an answer."""

    def client(self, address: str) -> Cluster:
        assert address == ADDRESS
        if self.away:
            raise self.away.pop()
        return self

    def put(self, name: str, status: str, exit_code: int | None = None, log: str = "") -> None:
        from ray.job_submission import JobDetails

        self.jobs = [job for job in self.jobs if job.submission_id != name]
        details = {"type": "SUBMISSION", "status": status, "entrypoint": "", "driver_exit_code": exit_code}
        self.jobs.append(JobDetails(submission_id=name, message=f"it is {status}", **details))
        self.logs[name] = log

    def list_jobs(self) -> list:
        return list(self.jobs)

    def get_job_logs(self, name: str) -> str:
        return self.logs[name]

    def submit_job(self, *, submission_id: str, runtime_env: dict, **request) -> None:
        if submission_id in [job.submission_id for job in self.jobs]:
            raise RuntimeError(f"Request failed with status code 500: {submission_id} already exists")
        text = (Path(runtime_env["working_dir"]) / "spec.json").read_text()
        self.submitted.append({"submission_id": submission_id, "runtime_env": runtime_env, "spec": text, **request})
        self.on_submit(submission_id, TrainingSpec.from_json(text))


@pytest.fixture
def cluster(monkeypatch) -> Cluster:
    """A cluster without jobs, in place of Ray's client."""
    import ray.job_submission

    cluster = Cluster()
    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", cluster.client)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.0)
    return cluster


def on_cluster(spec: Callable[..., TrainingSpec], address: str = ADDRESS, **ray) -> TrainingSpec:
    return spec(training={"ray": {"workers": 1, "poll_seconds": 0.2, "address": address, **ray}})


def trained_there(cluster: Cluster) -> Callable[[str, TrainingSpec], None]:
    """A job that trains at once and succeeds."""

    def run(name: str, spec: TrainingSpec) -> None:
        train(spec)
        cluster.put(name, "SUCCEEDED", 0, f"{spec.run_dir}\n")

    return run


def test_a_job_is_submitted_once_and_its_results_are_the_outcome(spec, cluster):
    cluster.on_submit = trained_there(cluster)
    there = on_cluster(spec)
    outcome = pose.training.run(there)
    assert outcome.fingerprint == there.fingerprint
    assert outcome.weights.exists()
    assert pose.training.run(there) == outcome
    assert [request["submission_id"] for request in cluster.submitted] == [f"{there.name}-a1"]


def test_the_job_trains_there_and_does_not_submit_again(spec, cluster):
    cluster.on_submit = trained_there(cluster)
    there = on_cluster(spec)
    pose.training.run(there)
    sent = TrainingSpec.from_json(cluster.submitted[0]["spec"])
    assert sent.params.training.ray.address is None
    assert sent.params.training.ray.workers == 1
    assert (sent.fingerprint, sent.run_dir) == (there.fingerprint, there.run_dir)


def test_no_secret_reaches_what_the_dashboard_shows(spec, cluster, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-in-the-mine")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "canary-in-the-mine")
    cluster.on_submit = trained_there(cluster)
    pose.training.run(on_cluster(spec))
    (request,) = cluster.submitted
    assert "canary" not in json.dumps(request, default=str)
    assert set(request["runtime_env"]) == {"working_dir"}
    assert request["entrypoint"] == "python -m pose.training spec.json"


def test_a_live_job_is_attached_to_and_lines_already_told_are_skipped(spec, cluster, capsys):
    there = on_cluster(spec)
    name = f"{there.name}-a1"
    cluster.put(name, "RUNNING", log="epoch 1\nepoch 2\nepo")
    looks: list[str] = []

    def grow(name: str) -> str:
        looks.append(name)
        if len(looks) == 2:
            train(there)
            cluster.put(name, "SUCCEEDED", 0, "epoch 1\nepoch 2\nepoch 3\n")
        return cluster.logs[name]

    cluster.get_job_logs = grow  # type: ignore[method-assign]
    there.run_dir.mkdir(parents=True)
    (there.run_dir / f"{name}.log").write_text("epoch 1\n")  # what an earlier follower told
    pose.training.run(there)
    assert cluster.submitted == []
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epo")]
    assert told == ["epoch 2", "epoch 3"]
    assert (there.run_dir / f"{name}.log").read_text() == "epoch 1\nepoch 2\nepoch 3\n"


@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_what_failed_before_is_submitted_under_the_next_number(spec, cluster, status):
    there = on_cluster(spec)
    cluster.put(f"{there.name}-a1", "FAILED", 137)
    cluster.put(f"{there.name}-a10", status, 137)
    cluster.put("somebody-elses-a3", "RUNNING")
    cluster.on_submit = trained_there(cluster)
    pose.training.run(there)
    assert [request["submission_id"] for request in cluster.submitted] == [f"{there.name}-a11"]


def test_a_lost_job_is_submitted_again_so_many_times(spec, cluster):
    there = on_cluster(spec, max_failures=2)
    cluster.on_submit = lambda name, spec: cluster.put(name, "FAILED", 137, "Killed\n")
    with pytest.raises(TrainingError, match=r"3 jobs in a row were lost on http://ray-head:8265.*it is FAILED"):
        pose.training.run(there)
    assert len(cluster.submitted) == 3


@pytest.mark.parametrize(("code", "kind"), [(2, ConfigError), (3, DataError), (4, TrainingError)])
def test_a_refusal_is_raised_as_it_is_and_not_tried_again(spec, cluster, code, kind):
    cluster.on_submit = lambda name, spec: cluster.put(name, "FAILED", code, "starting\nno image 17 in lspet\n")
    with pytest.raises(kind, match=r"^no image 17 in lspet \(job baseline1-"):
        pose.training.run(on_cluster(spec))
    assert len(cluster.submitted) == 1


def test_a_job_stopped_by_hand_is_not_started_again_behind_their_back(spec, cluster):
    cluster.on_submit = lambda name, spec: cluster.put(name, "STOPPED", log="epoch 1\n")
    with pytest.raises(TrainingError, match="stopped by hand"):
        pose.training.run(on_cluster(spec))
    assert len(cluster.submitted) == 1


def test_somebody_quicker_with_the_same_job_is_followed(spec, cluster):
    there = on_cluster(spec)
    name = f"{there.name}-a1"

    def beaten(*, submission_id: str, **request) -> None:
        train(there)
        cluster.put(name, "SUCCEEDED", 0, "done\n")
        raise RuntimeError(f"Request failed with status code 500: {submission_id} already exists")

    cluster.submit_job = beaten  # type: ignore[method-assign]
    assert pose.training.run(there).fingerprint == there.fingerprint


def test_results_travel_through_the_storage(spec, cluster, tmp_path):
    bucket = tmp_path / "bucket"
    there = on_cluster(spec, storage_path=bucket.as_uri())

    def elsewhere(name: str, sent: TrainingSpec) -> None:
        far = spec(storage=tmp_path / "far", training=sent.params.training.model_dump())
        train(far)
        shutil.move(far.run_dir, bucket / sent.name / "results")
        cluster.put(name, "SUCCEEDED", 0)

    cluster.on_submit = elsewhere
    outcome = pose.training.run(there)
    assert outcome.weights.parent == there.run_dir
    shutil.rmtree(there.run_dir)
    assert pose.training.run(there) == outcome, "a finished job's results are taken"
    shutil.rmtree(there.run_dir)
    shutil.rmtree(bucket)
    assert pose.training.run(there).weights_sha256 == outcome.weights_sha256, "results that are gone are made again"
    assert len(cluster.submitted) == 2


def test_without_a_shared_disk_the_missing_storage_is_named(spec, cluster):
    cluster.on_submit = lambda name, spec: cluster.put(name, "SUCCEEDED", 0)
    with pytest.raises(TrainingError, match=r"Set training\.ray\.storage_path"):
        pose.training.run(on_cluster(spec))


def test_a_head_that_comes_back_is_waited_for(spec, cluster, capsys):
    cluster.on_submit = trained_there(cluster)
    starting = "Request failed with status code 500: No available agent to submit job, please try again later.."
    cluster.away = [RuntimeError(starting), ConnectionError("Failed to connect to Ray"), ConnectionError("refused")]
    pose.training.run(on_cluster(spec))
    assert capsys.readouterr().err.count("is not ready (") == 1


def test_a_head_that_stays_away_is_named(spec, cluster, monkeypatch):
    monkeypatch.setattr(jobs, "PATIENCE_SECONDS", 0.05)
    cluster.away = [ConnectionError("Failed to connect to Ray")] * 10**6
    with pytest.raises(TrainingError, match=r"cluster at http://ray-head:8265 has not answered"):
        pose.training.run(on_cluster(spec))


def test_a_wrong_token_is_named(spec, cluster):
    from ray.exceptions import AuthenticationError

    cluster.away = [AuthenticationError("no")]
    with pytest.raises(ConfigError, match="set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"):
        pose.training.run(on_cluster(spec))


def test_a_job_that_a_new_head_has_forgotten_is_submitted_again(spec, cluster):
    def forgotten_once(name: str, sent: TrainingSpec) -> None:
        if len(cluster.submitted) > 1:
            trained_there(cluster)(name, sent)

    cluster.on_submit = forgotten_once
    pose.training.run(on_cluster(spec))
    assert len(cluster.submitted) == 2


def test_an_address_that_is_no_dashboard_is_refused(spec, cluster):
    with pytest.raises(ConfigError, match=r"training\.ray\.address is 'ray-head:10001', expected"):
        pose.training.run(on_cluster(spec, address="ray-head:10001"))


# ---------------------------------------------------------------- a real cluster of one machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def end(process: subprocess.Popen) -> None:
    """Ends a head and all that it started; never `ray stop`, which would end other clusters too."""
    with suppress(psutil.NoSuchProcess):
        ours = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        psutil.wait_procs(ours, timeout=10)
        for survivor in ours:
            with suppress(psutil.NoSuchProcess):
                survivor.kill()
        process.wait(10)


@pytest.fixture
def real_cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """The dashboard of a Ray head with token authentication, and the environment of its clients."""
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        # Ports that Ray chooses itself it waits for, only 15 s, which a busy machine misses.
        names = (
            "port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
            "metrics-export-port", "runtime-env-agent-port", "ray-client-server-port",
        )  # fmt: skip
        ports = {name: free_port() for name in names}
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--temp-dir={folder}",
            "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--include-dashboard=true", "--num-cpus=2",
            "--object-store-memory=100000000", "--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats",
            *[f"--{name}={port}" for name, port in ports.items()],
        ]  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "a-token-of-this-test-" + "0" * 32,
            "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "300",
        }
        head = started(command, environment, Path(folder, "head.log"))
        try:
            yield f"http://127.0.0.1:{ports['dashboard-port']}", environment
        finally:
            end(head)


def started(command: list[str], environment: dict[str, str], log: Path, attempts: int = 3) -> subprocess.Popen:
    """A Ray head that is up. On a busy machine Ray's own, fixed limits (15 and 30 s) may need several attempts."""
    for _ in range(attempts):
        with log.open("w") as file:
            head = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
        while head.poll() is None:
            if "Ray runtime started" in log.read_text():
                return head
            time.sleep(0.5)
        end(head)
    raise AssertionError(f"Ray did not start in {attempts} attempts:\n{log.read_text()}")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_job_trains_and_its_results_are_found_again(spec, real_cluster, tmp_path):
    address, environment = real_cluster
    there = on_cluster(spec, address=address, storage_path=str(tmp_path / "bucket"), cpus_per_worker=1)

    def launch(**changes: str) -> subprocess.CompletedProcess:
        """A client as a program of its own: Ray reads token and mode once per process."""
        command = [sys.executable, "-m", "pose.training", str(there.save())]
        return subprocess.run(command, env=environment | changes, capture_output=True, text=True, check=False)

    first = launch()
    assert first.returncode == 0, first.stderr
    assert f"submitted job {there.name}-a1" in first.stderr
    assert "baseline1 epoch 3 (regression)" in first.stderr
    outcome = Outcome.load(there.run_dir)
    assert outcome.fingerprint == there.fingerprint
    here = spec(storage=tmp_path / "here")
    assert pose.training.run(here).weights_sha256 == outcome.weights_sha256

    shutil.rmtree(there.run_dir)
    again = launch()
    assert again.returncode == 0, again.stderr
    assert f"attaching to job {there.name}-a1 (SUCCEEDED)" in again.stderr
    assert Outcome.load(there.run_dir) == outcome

    shutil.rmtree(there.run_dir)
    refused = launch(RAY_AUTH_TOKEN="not-the-token-of-this-test-" + "0" * 32)
    assert refused.returncode == ConfigError.exit_code
    assert "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" in refused.stderr
    assert "a-token-of-this-test" not in first.stderr + again.stderr + refused.stderr
