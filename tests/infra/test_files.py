"""What the tools themselves would accept silently: mistyped keys, dead images, hosts in the lock."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"

DEPLOYMENT_KEYS = {
    "name", "description", "entrypoint", "tags", "parameters", "schedules", "concurrency_limit", "work_pool",
}  # fmt: skip
SCHEDULE_KEYS = {"slug", "cron", "timezone", "active"}


def deployments() -> list[dict]:
    return yaml.safe_load((INFRA / "prefect.yaml").read_text())["deployments"]


@pytest.mark.parametrize("deployment", deployments(), ids=lambda deployment: deployment["name"])
def test_deployments_have_no_key_that_prefect_would_ignore(deployment: dict) -> None:
    assert set(deployment) <= DEPLOYMENT_KEYS
    assert set(deployment["concurrency_limit"]) == {"limit", "collision_strategy"}
    assert deployment["concurrency_limit"]["collision_strategy"] in ("ENQUEUE", "CANCEL_NEW")
    assert set(deployment["work_pool"]) == {"name", "job_variables"}
    for schedule in deployment.get("schedules", []):
        assert set(schedule) == SCHEDULE_KEYS


def test_the_top_of_prefect_yaml_has_no_key_that_prefect_would_ignore() -> None:
    top = yaml.safe_load((INFRA / "prefect.yaml").read_text())
    assert set(top) == {"prefect-version", "name", "pull", "deployments"}
    locked = re.search(r"^prefect==([\d.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None
    assert top["prefect-version"] == locked.group(1)


@pytest.mark.parametrize("deployment", deployments(), ids=lambda deployment: deployment["name"])
def test_the_environment_of_runs_holds_settings_that_prefect_knows(
    deployment: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings.models.flows import FlowsSettings

    variables = deployment["work_pool"]["job_variables"]["env"]
    monkeypatch.setenv("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", variables["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    assert FlowsSettings().heartbeat_frequency == 30
    assert set(variables) == {"PYTHONPATH", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"}


@pytest.mark.parametrize("deployment", deployments(), ids=lambda deployment: deployment["name"])
def test_entrypoints_are_flows_that_take_the_parameters(deployment: dict) -> None:
    path, name = deployment["entrypoint"].split(":")
    flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
    assert flow.name == deployment["name"]
    assert set(deployment["parameters"]) <= set(flow.parameters.properties)


def test_the_nightly_schedule_is_a_cron_expression() -> None:
    from prefect.client.schemas.schedules import CronSchedule

    schedule = next(d for d in deployments() if d["name"] == "train-all")["schedules"][0]
    assert schedule["active"] is True
    CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])


def test_compose_uses_drivers_and_images_that_exist() -> None:
    text = (INFRA / "compose.yaml").read_text()
    services = yaml.safe_load(text)["services"]
    assert {"postgres", "s3", "prefect", "mlflow", "worker"} <= set(services)
    assert not re.search(r"postgresql://", text), "SQLAlchemy reads a bare postgresql:// as another driver"
    assert "minio" not in " ".join(service["image"] for service in services.values())
    allowed = {
        "image", "build", "command", "entrypoint", "environment", "volumes", "ports", "depends_on", "healthcheck",
        "restart", "shm_size",
    }  # fmt: skip
    for name, service in services.items():
        assert set(service) <= allowed, name


def test_compose_waits_only_for_what_says_when_it_is_ready() -> None:
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        for other, wait in service.get("depends_on", {}).items():
            assert ("healthcheck" in services[other]) == (wait["condition"] == "service_healthy"), (name, other)
        assert ("build" in service) == (service["image"] == "pose"), f"{name}: nobody else has this image"


def test_the_bucket_of_the_cluster_profile_is_one_that_compose_makes() -> None:
    made = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]["buckets"]["command"]
    profile = yaml.safe_load((INFRA / "profiles" / "cluster.yaml").read_text())
    assert profile["training"]["ray"]["storage_path"].removeprefix("s3://") in made


def test_compose_secrets_are_required_and_named_in_the_example() -> None:
    needed = set(re.findall(r"\$\{([A-Z0-9_]+):\?\}", (INFRA / "compose.yaml").read_text()))
    offered = set(re.findall(r"^([A-Z0-9_]+)=", (INFRA / "environment.example").read_text(), re.MULTILINE))
    assert needed
    assert needed <= offered


def test_cluster_files_run_the_locked_ray_with_token_authentication() -> None:
    locked = re.search(r"^ray==([\d.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    cluster = yaml.safe_load((INFRA / "kubernetes" / "raycluster.yaml").read_text())
    assert locked is not None
    assert cluster["spec"]["rayVersion"] == locked.group(1)
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    machines = yaml.safe_load((INFRA / "ray" / "cluster-aws.yaml").read_text())
    starts = [line for line in machines["head_start_ray_commands"] + machines["worker_start_ray_commands"]
              if "ray start" in line]  # fmt: skip
    assert starts
    assert all("RAY_AUTH_MODE=token" in line for line in starts)


def test_cluster_machines_follow_rays_own_schema() -> None:
    import json

    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load((INFRA / "ray" / "cluster-aws.yaml").read_text()), schema)


def test_kubernetes_files_mount_only_what_they_declare() -> None:
    for path in (INFRA / "kubernetes").glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            for pod in _pods(document):
                declared = {volume["name"] for volume in pod.get("volumes", [])}
                used = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
                assert used == declared, path.name


def test_kubernetes_secrets_leave_the_name_that_kuberay_takes() -> None:
    folder = INFRA / "kubernetes"
    rendered = [path for path in folder.glob("*.yaml") if path.name != "kustomization.yaml"]
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert {path.name for path in rendered} == set(kustomization["resources"])
    cluster = yaml.safe_load((folder / "raycluster.yaml").read_text())["metadata"]["name"]
    tokens = []
    for path in rendered:
        for pod in (pod for document in yaml.safe_load_all(path.read_text()) for pod in _pods(document)):
            for container in pod["containers"]:
                assert container["image"] == kustomization["images"][0]["name"]
                assert all(entry["secretRef"]["name"] != cluster for entry in container["envFrom"])
                tokens += [
                    entry["valueFrom"]["secretKeyRef"] for entry in container.get("env", []) if "valueFrom" in entry
                ]
    assert tokens == [{"name": cluster, "key": "auth_token"}]


def _pods(value: object) -> list[dict]:
    if isinstance(value, dict):
        own = [value] if "containers" in value else []
        return own + [pod for child in value.values() for pod in _pods(child)]
    if isinstance(value, list):
        return [pod for child in value for pod in _pods(child)]
    return []


def test_the_lock_names_no_host_and_satisfies_pyproject() -> None:
    import tomllib

    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert "index-url" not in lock
    locked = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;\\]+)", lock, re.MULTILINE))
    locked = {canonicalize_name(name): version for name, version in locked.items()}
    entries = re.findall(r"^[A-Za-z0-9_.-]+==.*?(?=^[A-Za-z0-9_.-]+==|\Z)", lock, re.MULTILINE | re.DOTALL)
    assert all("--hash=sha256:" in entry for entry in entries)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"] + project["optional-dependencies"]["dev"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), text


def test_scripts_are_valid_shell() -> None:
    import subprocess

    for script in (INFRA / "up", INFRA / "worker", INFRA / "deploy", ROOT / ".ci" / "run"):
        assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
        assert script.stat().st_mode & 0o111, f"{script} is not executable"


def test_secrets_stay_out_of_git_and_out_of_the_image() -> None:
    import subprocess

    ignored = subprocess.run(["git", "check-ignore", "-q", "infra/.env"], cwd=ROOT, check=False)
    assert ignored.returncode == 0
    assert "**/.env" in (ROOT / ".dockerignore").read_text().splitlines()


def test_the_cluster_profile_speaks_to_the_cluster_that_the_files_describe() -> None:
    cluster = yaml.safe_load((INFRA / "kubernetes" / "raycluster.yaml").read_text())
    address = yaml.safe_load((INFRA / "profiles" / "cluster.yaml").read_text())["training"]["ray"]["address"]
    assert address == f"http://{cluster['metadata']['name']}-head-svc:8265"


@pytest.mark.parametrize("page", ["README.md", "infra/README.md"])
def test_links_in_pages_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
