"""The DVC stages, run for real in a repository of their own: nothing twice, and data that travels by a remote."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pose.digests import tree_sha256

CHECKOUT = Path(__file__).resolve().parents[2]
STAGES = yaml.safe_load((CHECKOUT / "dvc.yaml").read_text())["stages"]
BYTES_DO_NOT_DEPEND_ON = {
    f"pose.data.{name}" for name in ("ahead", "archives", "augment", "scene_views", "unpacking", "views")
}
"""Modules of pose.data that preparing loads, but which do not decide what comes out of it."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout with a small demo dataset and a local remote."""
    root = tmp_path_factory.mktemp("repository")
    for name in (".dvc/config", ".dvc/.gitignore", ".dvcignore", ".gitignore", "dvc.yaml"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(CHECKOUT / name, root / name)
    shutil.copytree(CHECKOUT / "pose", root / "pose", ignore=shutil.ignore_patterns("__pycache__"))
    params = yaml.safe_load((CHECKOUT / "params.yaml").read_text())
    params["data"]["demo"]["synthetic"]["images"] = 40
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    remote = tmp_path_factory.mktemp("remote")
    (root / ".dvc" / "config.local").write_text(f"[core]\nremote = here\n['remote \"here\"']\nurl = {remote}\n")
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return root


def dvc(root: Path, *arguments: str) -> str:
    """What a dvc command prints; fails the test when the command fails."""
    venv_first = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=root, env=os.environ | venv_first, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_data_is_made_once_and_travels_by_a_remote(repository: Path) -> None:
    first = dvc(repository, "repro", "prepare@demo")
    assert "Running stage 'draw@demo'" in first
    assert "Running stage 'prepare@demo'" in first
    prepared = repository / "data" / "prepared" / "demo"
    made = tree_sha256(prepared, ["**/*"])

    ignored = subprocess.run(
        ["git", "check-ignore", "dvc.lock", "dvc.yaml", "data/raw"], cwd=repository, capture_output=True
    )
    assert ignored.stdout.split() == [b"data/raw"]
    assert "Running" not in dvc(repository, "repro", "prepare@demo")

    dvc(repository, "push", "--with-deps", "prepare@demo")
    shutil.rmtree(repository / "data")
    shutil.rmtree(repository / ".dvc" / "cache")
    dvc(repository, "pull", "--with-deps", "prepare@demo")
    assert tree_sha256(prepared, ["**/*"]) == made

    params = yaml.safe_load((repository / "params.yaml").read_text())
    params["data"]["demo"]["crop"]["size"] = 64
    params["data"]["lspet"]["crop"]["size"] = 64
    (repository / "params.yaml").write_text(yaml.safe_dump(params))
    planned = dvc(repository, "repro", "--dry", "prepare@demo")
    assert "Running stage 'prepare@demo'" in planned
    assert "Running stage 'draw@demo'" not in planned


def test_every_dataset_has_its_stages() -> None:
    datasets = yaml.safe_load((CHECKOUT / "params.yaml").read_text())["data"]
    assert set(STAGES["prepare"]["foreach"]) == set(datasets)
    synthetic = {name for name, block in datasets.items() if block["kind"] == "synthetic"}
    assert set(STAGES["draw"]["foreach"]) == synthetic
    tiled = {name: block["collage"]["of"] for name, block in datasets.items() if block["kind"] == "collage"}
    assert STAGES["tile"]["foreach"] == tiled
    assert set(STAGES["download"]["foreach"]) == set(datasets) - synthetic - set(tiled)


def test_code_that_decides_the_prepared_bytes_is_a_dependency() -> None:
    listing = "import pose.data.check, pose.data.contact_sheet, pose.data.prepare, sys; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", listing], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    loaded = {name for name in output.stdout.split() if name.startswith("pose.data.")}
    listed = {
        dependency.removesuffix(".py").replace("/", ".")
        for stage in ("draw", "tile", "prepare")
        for dependency in STAGES[stage]["do"]["deps"]
        if dependency.startswith("pose/data/")
    }
    assert loaded - BYTES_DO_NOT_DEPEND_ON == listed
