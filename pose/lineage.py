"""Where a model comes from: code, lock, data, parameters, machine, and the command that makes it again."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from pose.config import ROOT, Params
from pose.digests import file_sha256, json_sha256

RECORDED_PACKAGES = ("torch", "torchvision", "numpy", "ray", "mlflow", "prefect", "dvc", "onnxruntime")
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
WRITTEN_BY_RUNS = "dvc.lock"
"""`dvc repro` writes it in the course of a run, so that a change to it says nothing about the code."""


def git_commit() -> str:
    """The commit of the checkout, with -dirty where tracked files differ; an image says its own in GIT_COMMIT."""
    if "GIT_COMMIT" in os.environ:
        return os.environ["GIT_COMMIT"]
    if not (ROOT / ".git").exists():
        return "unknown: not a git checkout and GIT_COMMIT is not set"
    try:
        return _git_commit()
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return f"unknown: {' '.join(said.split())}"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _git_commit() -> str:
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", f":(exclude){WRITTEN_BY_RUNS}")
    return f"{commit}-dirty" if changed else commit


def collect(params: Params, data_hash: str, command: str) -> dict[str, str]:
    """What every run and every model version is tagged with."""
    resolved = params.model_dump(mode="json")
    return {
        "dataset": params.dataset,
        "data_hash": data_hash,
        "data_params": json_sha256(resolved["data"][params.dataset]),
        "params": json_sha256({key: value for key, value in resolved.items() if key != "data"}),
        "seed": str(params.seed),
        "git_commit": git_commit(),
        "lock_hash": file_sha256(ROOT / "requirements.lock"),
        "command": command,
        "image": os.environ.get("POSE_IMAGE", "none: ran outside a container"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {_accelerator()}",
        "packages": " ".join(f"{name}=={version(name)}" for name in RECORDED_PACKAGES),
    }


def _accelerator() -> str:
    import torch

    if not torch.cuda.is_available():
        return "no GPU"
    driver = NVIDIA_DRIVER.read_text().splitlines()[0] if NVIDIA_DRIVER.exists() else "driver not told"
    return f"{torch.cuda.device_count()}x {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, {driver}"
