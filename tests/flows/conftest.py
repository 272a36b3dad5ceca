"""One Prefect server, two tiny prepared datasets and one MLflow store for all tests of the flows."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    temporary_settings,
)
from torch import Tensor

from flows import promote as promote_module
from flows import train_all as train_all_module
from flows.data import DatasetVersion
from flows.server import EmbeddedServer, starting
from flows.train_all import Summary
from pose.config import DatasetParams
from pose.config_loading import load_dataset
from pose.data.batch import Batch
from pose.data.coco import category
from pose.data.lsp import annotation
from pose.data.prepare import prepare
from pose.errors import TrainingError
from pose.registry import Registry
from pose.skeleton import COCO17, LSP14, Skeleton
from pose.systems.vgg16_regressor import Vgg16Regressor

SIDE = 48
IMAGES = 90
NETWORK = {"recipe": "modern", "input_size": 32, "dropout": 0.0}
RECIPE = {
    "batch_size": 16,
    "optimiser": {"lr": 0.01, "weight_decay": 0.0},
    "schedule": {"warmup_steps": 2},
    "augment": {"scale": 0, "rotate": 0, "translate": 0, "flip": 0, "colour": 0},
    "ema_decay": None,
}
BOTH_HEADS = {"name": "both", "epochs": 5, "train": ["trunk", "presence", "coordinates"],
              "losses": {"presence": 0.05, "coordinates": 10.0}}  # fmt: skip
WHOLE = {"name": "regression", "epochs": 2, "train": ["network"], "losses": {"coordinates": 10.0}}
PROFILE: dict[str, Any] = {
    "architectures": ["baseline1", "vgg16_regressor"],
    "parallel": 2,
    "systems": {
        "baseline1": NETWORK
        | {"channels": [6, 8], "kernel": 3, "hidden": [32, 8], "coordinate_hidden": [32], "batch_norm": True,
           "recipes": {"modern": RECIPE | {"phases": [BOTH_HEADS]}}},
        "vgg16_regressor": NETWORK
        | {"channels": [4, 4, 8, 8, 8], "hidden": 16, "recipes": {"modern": RECIPE | {"phases": [WHOLE]}}},
    },
    "training": {"threads": 1, "loader_threads": 1, "checkpoint": {"every_steps": 1000}, "ray": {"workers": 0}},
    "evaluation": {"resamples": 100, "gallery": 2},
    "export": {"parity_images": 4, "latency_runs": 1},
    "promotion": {"resamples": 200},
}  # fmt: skip
"""Networks that learn where a disc is in a second."""


def draw(index: int, skeleton: Skeleton) -> tuple[bytes, dict]:
    """A disc at a random place; the joints lie around it, the first is hidden where the disc is blue."""
    random = np.random.default_rng(index)
    centre, radius = random.uniform(12, SIDE - 12, size=2), 8.0
    blue = index % 4 == 0
    picture = Image.new("RGB", (SIDE, SIDE), tuple(random.integers(0, 90, size=3).tolist()))
    pen = ImageDraw.Draw(picture)
    pen.ellipse([*(centre - 6), *(centre + 6)], fill=(60, 60, 250) if blue else (250, 220, 40))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=92)
    angles = 2 * np.pi * np.arange(skeleton.size) / skeleton.size
    joints = np.zeros((skeleton.size, 3))
    joints[:, :2] = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    joints[:, 2] = 2
    joints[0, 2] = 1 if blue else 2
    return file.getvalue(), annotation(index + 1, index + 1, joints)


def make_dataset(name: str, skeleton: Skeleton, folder: Path) -> DatasetVersion:
    """Draws an archive and takes it through the real preparation."""
    drawn = [draw(index, skeleton) for index in range(IMAGES)]
    images = [{"id": i + 1, "file_name": f"images/{i:03d}.jpg", "width": SIDE, "height": SIDE} for i in range(IMAGES)]
    coco = {"info": {}, "categories": [category(skeleton)], "images": images, "annotations": [a for _, a in drawn]}
    raw = folder / "raw" / name
    raw.mkdir(parents=True)
    with zipfile.ZipFile(raw / f"{name}.zip", "w") as archive:
        archive.writestr("annotations.json", json.dumps(coco))
        for record, (content, _) in zip(images, drawn, strict=True):
            archive.writestr(record["file_name"], content)
    block = load_dataset("demo").model_dump() | {"split": {"train": 0.6, "val": 0.2, "test": 0.2}}
    block["crop"] |= {"size": SIDE}
    block["synthetic"] |= {"skeleton": skeleton.name}
    block["check"] |= {"duplicate_correlation": 1.0}
    prepared = folder / "prepared" / name
    prepare(name, DatasetParams.model_validate(block), raw, folder / "unpacked", prepared)
    return DatasetVersion(name, prepared, hashlib.md5((prepared / "SHA256SUMS").read_bytes()).hexdigest(), False)


@pytest.fixture(scope="package")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DatasetVersion]:
    """`demo` with LSP's 14 joints, `synthetic` with COCO's 17."""
    folder = tmp_path_factory.mktemp("data")
    return {name: make_dataset(name, skeleton, folder) for name, skeleton in (("demo", LSP14), ("synthetic", COCO17))}


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One embedded Prefect server with a database of its own; nothing of the user's is touched."""
    home = tmp_path_factory.mktemp("prefect")
    ours = {
        PREFECT_HOME: home,
        PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{home}/prefect.db",
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: True,
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
    }
    with temporary_settings(updates=ours, restore_defaults={PREFECT_API_URL}), starting() as embedded:
        assert isinstance(embedded, EmbeddedServer)
        with embedded.answering():
            yield embedded


@pytest.fixture(scope="package")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for trainings, MLflow and reports: a new database costs seconds."""
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="package")
def flow_world(server: EmbeddedServer, datasets: dict[str, DatasetVersion]) -> Iterator[dict[str, DatasetVersion]]:
    """The flows with DVC replaced by what it would have prepared, and no pause before another try to register."""
    register = train_all_module.register.with_options(retry_delay_seconds=0.01)
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        for module in (train_all_module, promote_module):
            patched.setattr(module, "bring_up_to_date", datasets.__getitem__)
        patched.setattr(train_all_module, "register", register)
        yield datasets


@pytest.fixture(scope="package")
def profile(tmp_path_factory: pytest.TempPathFactory, storage: Path) -> Callable[..., str]:
    """Writes a profile of tiny networks with changes at its top level; returns its path."""
    folder = tmp_path_factory.mktemp("profiles")

    def write(**changes: Any) -> str:
        text = yaml.safe_dump({"dataset": "demo", "storage": str(storage), **PROFILE, **changes})
        path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture(scope="package")
def broken(flow_world: dict[str, DatasetVersion], profile: Callable[..., str]) -> TrainingError:
    """What the first run of all ends in: the loss of the VGG is not a number."""

    def nothing(system: Vgg16Regressor, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        return {"coordinates": outputs["coordinates"].mean() * float("nan")}

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Vgg16Regressor, "loss", nothing)
        with pytest.raises(TrainingError) as raised:
            train_all_module.train_all(profile())
    return raised.value


@pytest.fixture(scope="package")
def repaired(broken: TrainingError, profile: Callable[..., str]) -> Summary:
    """The same once more, with a sound loss."""
    return train_all_module.train_all(profile())


@pytest.fixture(scope="package")
def registry(storage: Path, flow_world: dict[str, DatasetVersion]) -> Registry:
    """What the flows register in."""
    return Registry(storage)
