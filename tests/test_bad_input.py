"""Whatever is wrong with what the program is given: one paragraph that names the culprit, an exit code, nothing lost.

Each case goes through the command line, in a checkout of its own whose dataset `lspet` is twenty small pictures.
"""

from __future__ import annotations

import errno
import hashlib
import http.server
import importlib
import io
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw
from scipy.io import savemat
from typer.testing import CliRunner

from pose.cli import app
from pose.config import ROOT
from pose.data import archives
from pose.errors import ConfigError, DataError, PoseError, RegistryAwayError, TrainingError

PICTURES = 20
SIDE = 40
NOWHERE = "http://127.0.0.1:9"
TINY = {
    "systems": {
        "baseline1": {
            "recipe": "modern", "input_size": 16, "channels": [2, 2], "kernel": 3, "hidden": [4, 4],
            "coordinate_hidden": [4],
            "recipes": {"modern": {"batch_size": 4, "phases": [
                {"name": "both", "epochs": 2, "train": ["trunk", "presence", "coordinates"],
                 "losses": {"presence": 0.1, "coordinates": 1.0}}]}},
        }
    },
    "training": {"threads": 1, "loader_threads": 1, "checkpoint": {"every_steps": 1}, "ray": {"workers": 0}},
}  # fmt: skip


def fails(kind: type[PoseError], *arguments: str) -> str:
    """The paragraph that a command ends in, with the exit code of its kind and no traceback."""
    result = CliRunner().invoke(app, list(arguments))
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == kind.exit_code, result.stderr
    assert "Traceback" not in result.stderr
    paragraph = result.stderr.splitlines()[-1]
    assert paragraph.startswith(f"{kind.__name__}: ")
    return paragraph


def succeeds(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.stderr
    return result.stdout


# ---------------------------------------------------------------- a small dataset


def joints() -> np.ndarray:
    """[14, 3, N]: a ring of joints inside each picture, every seventh not annotated."""
    angles = 2 * np.pi * np.arange(14) / 14
    ring = 20 + 12 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    places = np.repeat(ring[:, :, None], PICTURES, axis=2) + np.linspace(-3, 3, PICTURES)
    flags = (np.add.outer(np.arange(14), np.arange(PICTURES)) % 7 > 0).astype(float)
    return np.concatenate([places, flags[:, None]], axis=1)


def picture(number: int) -> bytes:
    random = np.random.default_rng(number)
    image = Image.new("RGB", (SIDE, SIDE), tuple(random.integers(0, 255, 3).tolist()))
    ImageDraw.Draw(image).rectangle([5, 5, 6 + number, 20], fill=tuple(random.integers(0, 255, 3).tolist()))
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def members(where: np.ndarray | None = None) -> dict[str, bytes]:
    """What an archive of LSP-extended holds."""
    matrix = io.BytesIO()
    savemat(matrix, {"joints": joints() if where is None else where})
    return {f"images/im{n:05d}.jpg": picture(n) for n in range(1, PICTURES + 1)} | {"joints.mat": matrix.getvalue()}


def packed(content: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, value in content.items():
            archive.writestr(name, value)
    return file.getvalue()


class Checkout:
    """A params.yaml with the dataset `lspet` of one archive, and the folder that POSE_MIRROR names."""

    def __init__(self, root: Path) -> None:
        self.root, self.mirror = root, root / "mirror"
        self.mirror.mkdir()
        self.params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
        block = self.params["data"]["lspet"]
        block["archives"][0] |= {"file": "set.zip", "sources": [{"url": "mirror"}]}
        block["crop"]["size"] = 24
        block["check"] = block["check"] | {"duplicate_correlation": 1.0}
        block["split"] = {"train": 0.5, "val": 0.25, "test": 0.25}
        self.block = block
        self.save()

    def save(self) -> None:
        (self.root / "params.yaml").write_text(yaml.safe_dump(self.params))

    def offer(self, content: dict[str, bytes]) -> None:
        (self.mirror / "set.zip").write_bytes(packed(content))

    @property
    def prepared(self) -> Path:
        return self.root / "data" / "prepared" / "lspet"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    for module in ("pose.config_loading", "flows.steps"):  # what takes ROOT over must not take this test's
        importlib.import_module(module)
    made = Checkout(tmp_path)
    monkeypatch.setattr("pose.config.ROOT", tmp_path)
    monkeypatch.setenv("POSE_MIRROR", made.mirror.as_uri())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return made


# ---------------------------------------------------------------- archives


def test_wrong_archive_hash(checkout: Checkout) -> None:
    checkout.offer(members())
    found = hashlib.sha256((checkout.mirror / "set.zip").read_bytes()).hexdigest()
    checkout.block["archives"][0]["sources"] = [{"url": "mirror", "sha256": "0" * 64}]
    checkout.save()
    said = fails(DataError, "data", "fetch", "lspet")
    assert all(word in said for word in ("set.zip", found, "0" * 64))
    assert [path for path in (checkout.root / "data").rglob("*") if path.is_file()] == []
    assert (checkout.mirror / "set.zip").exists()


@pytest.fixture
def cutting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], tuple[str, list]]]:
    """A web server that lets a request have at most so many bytes; the list of limits may be changed."""
    servers = []

    def serve(content: bytes) -> tuple[str, list[int]]:
        limits = [len(content) // 2, 0, 0, 0, 0, 0]

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
                self.send_response(206 if start else 200)
                self.send_header("ETag", '"one"')
                self.send_header("Content-Length", str(len(content) - start))
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                self.wfile.write(content[start:][: limits.pop(0) if limits else None])

            def log_message(self, *_: object) -> None:
                """Keeps the test's output clean."""

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/set.zip", limits

    monkeypatch.delenv("POSE_MIRROR")
    monkeypatch.setattr(archives, "BACKOFF_SECONDS", 0.01)
    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_interrupted_download(checkout: Checkout, cutting: Callable[[bytes], tuple[str, list]]) -> None:
    content = packed(members())
    url, limits = cutting(content)
    checkout.block["archives"][0]["sources"] = [{"url": url, "sha256": hashlib.sha256(content).hexdigest()}]
    checkout.save()
    said = fails(DataError, "data", "fetch", "lspet")
    assert url in said
    assert f"the connection closed after {len(content) // 2} of {len(content)} bytes" in said
    raw = checkout.root / "data" / "raw" / "lspet"
    assert not (raw / "set.zip").exists()
    # What came is kept: the next command takes only the rest.
    limits[:] = [len(content) - len(content) // 2]
    succeeds("data", "fetch", "lspet")
    assert (raw / "set.zip").read_bytes() == content


def truncated(content: dict[str, bytes]) -> dict[str, bytes]:
    name = "images/im00002.jpg"
    return content | {name: content[name][:-30]}


def truncated_header(content: dict[str, bytes]) -> dict[str, bytes]:
    name = "images/im00002.jpg"
    return content | {name: content[name][:300]}


def without_an_image(content: dict[str, bytes]) -> dict[str, bytes]:
    return {name: value for name, value in content.items() if name != "images/im00003.jpg"}


def nan_joint(content: dict[str, bytes]) -> dict[str, bytes]:
    where = joints()
    where[5, 0, 3] = np.nan
    return content | {"joints.mat": members(where)["joints.mat"]}


def other_shape(content: dict[str, bytes]) -> dict[str, bytes]:
    return content | {"joints.mat": members(joints()[:13])["joints.mat"]}


def leaving(content: dict[str, bytes]) -> dict[str, bytes]:
    return content | {"../im00021.jpg": picture(21)}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (leaving, ("set.zip is refused", "'../im00021.jpg'", "Nothing was unpacked")),
        (other_shape, ("joints.mat", f"13x3x{PICTURES}", "14x3xN")),
        (truncated, ("truncated_image: images/im00002.jpg", "audit.json")),
        (truncated_header, ("truncated_image: images/im00002.jpg", "audit.json")),
        (without_an_image, ("images", "im00003.jpg", "1 missing")),
        (nan_joint, ("nan_joint: images/im00004.jpg", "left_ankle")),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damaged_archives(
    checkout: Checkout, spoil: Callable[[dict[str, bytes]], dict[str, bytes]], words: tuple[str, ...]
) -> None:
    checkout.prepared.mkdir(parents=True)
    (checkout.prepared / "dataset.json").write_text("of yesterday")
    checkout.offer(spoil(members()))
    succeeds("data", "fetch", "lspet")
    said = fails(DataError, "data", "prepare", "lspet")
    assert [word for word in words if word not in said] == []
    assert [path.name for path in checkout.prepared.parent.iterdir()] == ["lspet"]
    assert [path.read_text() for path in checkout.prepared.iterdir()] == ["of yesterday"]
    assert list(checkout.root.rglob("im00021.jpg")) == []


@pytest.mark.parametrize(("spoil", "kind"), [(truncated, "truncated_image"), (nan_joint, "nan_joint")])
def test_few_bad_records_are_listed_and_left_out(
    checkout: Checkout, spoil: Callable[[dict[str, bytes]], dict[str, bytes]], kind: str
) -> None:
    """Where params.yaml allows so many, they do not stop the rest; they are never left out silently."""
    checkout.block["check"]["max_bad_share"] = 0.1
    checkout.save()
    checkout.offer(spoil(members()))
    succeeds("data", "fetch", "lspet")
    succeeds("data", "prepare", "lspet")
    assert kind in (checkout.prepared / "audit.json").read_text()
    described = yaml.safe_load((checkout.prepared / "dataset.json").read_text())
    assert sum(described["counts"].values()) == PICTURES - 1
    assert described["excluded"] == 1
    assert described["findings"][kind] == 1


def test_empty_split(checkout: Checkout) -> None:
    checkout.block["split"] = {"train": 0.6, "val": 0.4, "test": 0.0}
    checkout.save()
    checkout.offer(members())
    succeeds("data", "fetch", "lspet")
    assert "The test split of lspet is empty" in fails(DataError, "data", "prepare", "lspet")
    assert not checkout.prepared.exists()


# ---------------------------------------------------------------- params.yaml


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"training": {"precison": "bf16"}}, "training.precison is not a known key"),
        ({"training": {"precision": "fp8"}}, "training.precision is 'fp8'"),
        ({"promotion": {"margin": -1}}, "promotion.margin is -1"),
        ({"architectures": ["baseline1", "vgg18"]}, "architectures is 'vgg18'"),
        ({"dataset": "lspett"}, "did you mean 'lspet'?"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("command", [("train", "baseline1"), ("train-all",), ("config", "show")], ids=" ".join)
def test_impossible_params(checkout: Checkout, command: tuple[str, ...], change: dict[str, Any], words: str) -> None:
    for key, value in change.items():
        self = checkout.params
        self[key] = self[key] | value if isinstance(value, dict) else value
    checkout.save()
    said = fails(ConfigError, *command)
    assert words in said
    assert sorted(path.name for path in checkout.root.iterdir()) == ["mirror", "params.yaml"]


@pytest.mark.parametrize("command", [("train", "vgg18"), ("systems", "show", "vgg18")], ids=" ".join)
def test_unknown_architecture(checkout: Checkout, command: tuple[str, ...]) -> None:
    assert "unknown architecture 'vgg18'; params.yaml has " in fails(ConfigError, *command)


# ---------------------------------------------------------------- training and its record


@pytest.fixture
def tiny(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """The command that trains a tiny network on the small dataset."""
    from flows import data
    from flows.data import DatasetVersion

    checkout.offer(members())
    succeeds("data", "fetch", "lspet")
    succeeds("data", "prepare", "lspet")
    version = DatasetVersion("lspet", checkout.prepared, "0123", False)
    monkeypatch.setattr(data, "bring_up_to_date", lambda dataset: version)
    profile = checkout.root / "tiny.yaml"
    profile.write_text(yaml.safe_dump(TINY))
    return ("train", "baseline1", "--profile", str(profile))


def test_disk_full_while_writing_a_checkpoint(
    checkout: Checkout, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pose.training import checkpoints

    save = checkpoints.save

    def no_room(writer: Any, data: Any) -> int:
        writer.failure = OSError(errno.ENOSPC, "No space left on device")
        raise writer.failure

    def save_until_full(directory: Path, step: int, *rest: Any) -> Path:
        if step == 2:
            full.setattr(checkpoints._HashingWriter, "write", no_room)
        return save(directory, step, *rest)

    with monkeypatch.context() as full:
        full.setattr(checkpoints, "save", save_until_full)
        said = fails(TrainingError, *tiny)
    assert "step-00000002 could not be written: the disk is full" in said
    assert "Earlier checkpoints are intact" in said
    (run_dir,) = (checkout.root / "runs" / "training").iterdir()
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-00000001"]
    succeeds(*tiny)
    assert yaml.safe_load((run_dir / "outcome.json").read_text())["resumed_from"] == [1]


def test_mlflow_unreachable(checkout: Checkout, tiny: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs MLflow says so; training does not. What train-all does then: tests/flows/test_train_all.py."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    for command in (("registry", "list"), ("evaluate", "models:/pose-lspet@champion")):
        said = fails(RegistryAwayError, *command)
        assert f"MLflow at {NOWHERE} does not answer" in said
    succeeds(*tiny)
