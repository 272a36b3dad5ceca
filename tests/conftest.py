"""Fixtures that many tests share: the real archives, one small prepared dataset, a quiet environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Several tools phone home or draw bars unless told not to; two cores are shared by everything."""
    for name, value in {
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
    }.items():
        os.environ.setdefault(name, value)
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes of `make test` have a core each


SHARE_A_STORE = ("test_promote.py", "test_server.py", "test_train_all.py")
"""Files in tests/flows that need one Prefect server and what one run of the flow left."""


LONG = ("test_ray.py", "test_deployment.py", "test_dvc.py", "test_resume.py", "test_all_in_ranks.py")
"""Files that would keep one process at work when the others have finished, were they not begun first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first where there are several processes."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.path.name not in LONG)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of the processes of `make test`, one runs all of a file's tests, and one all that share the flows' store."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "tests/flows" if file.endswith(SHARE_A_STORE) else file

    return Scheduling(config, log)


def mirror_folder() -> Path | None:
    """The folder of the real archives: POSE_MIRROR where it is one, else ../shared/data beside the checkout."""
    mirror = os.environ.get("POSE_MIRROR", "")
    if mirror.startswith("file://"):
        return Path(urlparse(mirror).path)
    beside = CHECKOUT.parent / "shared" / "data"
    return beside if beside.is_dir() else None


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder with the real archives, or a skip that says what is missing."""
    folder = mirror_folder()
    if folder is None or not (folder / "lspet_dataset.zip").is_file():
        pytest.skip("no real data: set POSE_MIRROR=file:///... or put ../shared/data beside the checkout")
    return folder
