"""What Prefect makes of infra/: a real server, the deployments, their schedule, and the automation for lost runs."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")

pytestmark = pytest.mark.timeout(900)


@dataclass(frozen=True)
class Server:
    """A Prefect server and the environment that its clients need."""

    environment: dict[str, str]

    def ask(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """GET, or POST where there is a body."""
        request = urllib.request.Request(
            self.environment["PREFECT_API_URL"] + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def deployment(self, name: str) -> dict[str, Any]:
        return self.ask(f"/deployments/name/{name}")

    def automation(self) -> dict[str, Any]:
        """The only one."""
        (automation,) = self.ask("/automations/filter", {})
        return automation


def until(question: Callable[[], T | None], seconds: float, what: str) -> T:
    """The first answer that is not None or empty."""
    given_up = time.monotonic() + seconds
    while time.monotonic() < given_up:
        if answer := question():
            return answer
        time.sleep(0.5)
    raise AssertionError(f"{what} did not come within {seconds:g} s")


def clean_environment(home: Path, port: int) -> dict[str, str]:
    """Ours, without what points at another server or another home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "POSE_"))}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "OMP_NUM_THREADS": "1",
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of our own to which infra/deploy has brought everything."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    server = Server(clean_environment(home, port) | {"PREFECT_SERVER_UI_ENABLED": "false"})
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=server.environment, stdout=log, stderr=log, start_new_session=True)
    try:
        until(lambda: healthy(server), 240, f"the Prefect server (log: {home / 'server.log'})")
        deploy(server)
        yield server
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def healthy(server: Server) -> bool:
    with suppress(OSError):
        return bool(server.ask("/health"))
    return False


def deploy(server: Server) -> None:
    environment = server.environment | {"POSE_POOL": "of-this-test", "POSE_PROFILE": "lspet-cpu"}
    done = subprocess.run([ROOT / "infra" / "deploy"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_server_imports() -> None:
    """It does not with the FastAPI that Prefect's own requirements let in."""
    importlib.import_module("prefect.server.api.server")


@pytest.mark.parametrize("name", ["train-all/train-all", "promote/promote"])
def test_the_deployments_run_from_this_checkout(deployed: Server, name: str) -> None:
    deployment = deployed.deployment(name)
    assert deployment["parameters"]["profile"] == "lspet-cpu"
    assert deployment["work_pool_name"] == "of-this-test"
    (step,) = deployment["pull_steps"]
    assert step == {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}
    assert deployment["job_variables"]["env"]["PYTHONPATH"] == str(ROOT)
    path, function = deployment["entrypoint"].split(":")
    assert (ROOT / path).is_file()
    assert f"def {function}(" in (ROOT / path).read_text()


@pytest.mark.parametrize("name", ["train-all/train-all", "promote/promote"])
def test_one_run_at_a_time_and_the_next_waits(deployed: Server, name: str) -> None:
    deployment = deployed.deployment(name)
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"


def test_the_schedule_really_makes_runs(deployed: Server) -> None:
    """With SQLAlchemy 2.1 it says it is active and never makes one."""
    deployment = deployed.deployment("train-all/train-all")

    def scheduled() -> list[dict[str, Any]]:
        wanted = {"deployments": {"id": {"any_": [deployment["id"]]}},
                  "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}  # fmt: skip
        return [run for run in deployed.ask("/flow_runs/filter", wanted) if run["auto_scheduled"]]

    runs = until(scheduled, 90, "a scheduled run")
    for run in runs:
        start = datetime.fromisoformat(run["expected_start_time"])
        assert start.astimezone(UTC).strftime("%H:%M") == "02:00"
        assert run["parameters"]["profile"] == "lspet-cpu"
    assert deployed.deployment("promote/promote")["schedules"] == []


def test_the_automation_is_what_its_file_says(deployed: Server) -> None:
    automation = deployed.automation()
    assert automation["name"] == "crash-lost-runs"
    assert automation["enabled"] is True
    trigger = automation["trigger"]
    assert (trigger["type"], trigger["posture"], trigger["threshold"]) == ("event", "Proactive", 1)
    assert trigger["after"] == ["prefect.flow-run.heartbeat"]
    ends = {f"prefect.flow-run.{name}" for name in ("heartbeat", "Completed", "Failed", "Cancelled", "Crashed")}
    assert set(trigger["expect"]) == ends
    assert trigger["for_each"] == ["prefect.resource.id"]
    (action,) = automation["actions"]
    assert (action["type"], action["state"]) == ("change-flow-run-state", "CRASHED")
    for name in ("train-all/train-all", "promote/promote"):
        heartbeat = deployed.deployment(name)["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]
        assert trigger["within"] >= 3 * int(heartbeat)


def test_a_run_whose_machine_is_lost_is_crashed_and_lets_the_next_go(deployed: Server) -> None:
    automation = deployed.automation()
    quick = {**automation, "trigger": {**automation["trigger"], "within": 10}}  # minutes are too long for a test
    known = ("name", "description", "enabled", "trigger", "actions", "actions_on_trigger", "actions_on_resolve", "tags")
    changed = {key: quick[key] for key in known if key in quick}
    deployed.ask(f"/automations/{automation['id']}", changed, "PUT")
    lost, waiting = (start(deployed, "promote/promote") for _ in range(2))

    assert propose(deployed, lost, "PENDING") == "ACCEPT"
    assert propose(deployed, lost, "RUNNING") == "ACCEPT"
    assert propose(deployed, waiting, "PENDING") != "ACCEPT", "two at once"
    heartbeat(deployed, lost)

    def crashed() -> bool:
        return deployed.ask(f"/flow_runs/{lost}")["state"]["type"] == "CRASHED"

    until(crashed, 90, "the end of a run without heartbeat")
    assert propose(deployed, waiting, "PENDING") == "ACCEPT"


def start(server: Server, deployment: str) -> str:
    """A new run of the deployment, which no worker takes."""
    known = server.deployment(deployment)["id"]
    body = {"parameters": {"reference": "models:/pose-x/1"}, "state": {"type": "SCHEDULED"}}
    return server.ask(f"/deployments/{known}/create_flow_run", body)["id"]


def propose(server: Server, run: str, state: str) -> str:
    """What the server says to a run that would like to be in this state: ACCEPT, WAIT, REJECT or ABORT."""
    return server.ask(f"/flow_runs/{run}/set_state", {"state": {"type": state}})["status"]


def heartbeat(server: Server, run: str) -> None:
    """What a running flow sends every thirty seconds."""
    event = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "prefect.flow-run.heartbeat",
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.name": "lost"},
        "related": [],
        "payload": {},
    }
    server.ask("/events", [event])


@pytest.mark.slow
def test_deploying_again_updates_and_adds_nothing(deployed: Server) -> None:
    before = {name: deployed.deployment(name)["id"] for name in ("train-all/train-all", "promote/promote")}
    automation = deployed.automation()
    deploy(deployed)
    assert {name: deployed.deployment(name)["id"] for name in before} == before
    assert deployed.automation()["id"] == automation["id"]
    assert deployed.automation()["trigger"]["within"] == 180
    assert len(deployed.deployment("train-all/train-all")["schedules"]) == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_script_goes_from_nothing_to_a_completed_run(tmp_path: Path) -> None:
    """Server, pool, deployments, worker, run; then nothing of them is left."""
    port = free_port()
    ours = {"POSE_PORT": str(port), "POSE_PROFILE": "demo", "COLUMNS": "200"}
    environment = clean_environment(tmp_path / "prefect", port) | ours
    losses = "{presence: 0.05, coordinates: 10.0}"
    phase = f"{{name: regression, epochs: 1, train: [trunk, presence, coordinates], losses: {losses}}}"
    overrides = [
        "architectures=[baseline1]", f"storage={tmp_path}", "evaluation.resamples=50",
        f"systems.baseline1.recipes.modern.phases=[{phase}]",
    ]  # fmt: skip
    command = [ROOT / "infra" / "up", "--once", "--params", json.dumps({"overrides": overrides})]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished successfully in 'Completed'" in done.stdout
    assert "baseline1: registered as models:/pose-baseline1/1" in done.stdout, "what the run says is not shown"
    assert list((tmp_path / "reports").glob("*/report.html"))
    assert not healthy(Server(environment))
