"""train-all on drawn discs: what it leaves, what it skips, and what survives a failure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import torch
from prefect.artifacts import Artifact
from typer.testing import CliRunner

import pose.training.loop
from flows import steps
from flows import train_all as train_all_module
from flows.data import DatasetVersion
from flows.train_all import Summary, train_all
from pose.cli import app
from pose.errors import RegistryAwayError, RegistryError, TrainingError
from pose.inference.predictor import Predictor
from pose.registry import Registry

pytestmark = pytest.mark.timeout(600)  # the first test starts Prefect's server and MLflow's database

NOWHERE = "http://127.0.0.1:9"
LINEAGE = {
    "dataset", "data_hash", "data_params", "params", "seed", "git_commit", "lock_hash", "command", "image", "python",
    "machine", "packages", "architecture", "fingerprint", "release", "split", "intervals", "bundle_sha256",
}  # fmt: skip
Profile = Callable[..., str]


@pytest.fixture
def untrainable(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on nothing may be trained."""

    def refuse(*_: object) -> None:
        raise AssertionError("this must not be trained again")

    monkeypatch.setattr(pose.training.loop, "train", refuse)


def files(*folders: Path) -> dict[Path, int]:
    """Every file and when it was written; a lock is touched by whoever asks for what it guards."""
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: path.stat().st_mtime_ns for path in found}


def versions(registry: Registry) -> dict[str, int]:
    return {summary.name: summary.versions for summary in registry.list()}


def trained_as(storage: Path, system: str, fingerprint: str) -> Path:
    return storage / "training" / f"{system}-{fingerprint[:12]}"


def artifact(key: str) -> Any:
    found = Artifact.get(key)
    assert found is not None, f"no Prefect artifact {key!r}"
    return found


# ---------------------------------------------------------------- one run, its failure and its repair


def test_one_failure_is_named_and_loses_nothing_else(broken: TrainingError, repaired: Summary, storage: Path) -> None:
    text = str(broken)
    assert re.match(r"1 architecture\(s\) failed and the others were kept: vgg16_regressor: .*not finite", text)
    assert "image ids" in text
    assert "\n" not in text
    assert "baseline1" not in text
    # The second run repaired the one and found the other done.
    assert repaired.skipped == ["baseline1"]
    assert repaired.versions == {
        "baseline1": "models:/pose-baseline1/1",
        "vgg16_regressor": "models:/pose-vgg16_regressor/1",
    }
    assert len(list((storage / "training").iterdir())) == 2


def test_the_best_is_champion_of_the_dataset(repaired: Summary, registry: Registry) -> None:
    assert repaired.champion == "models:/pose-demo@champion"
    champion = registry.resolve("pose-demo@champion")
    figures = {name: registry.resolve(uri).metrics["pck_image_12"] for name, uri in repaired.versions.items()}
    assert champion.tags["architecture"] == max(figures, key=lambda name: figures[name]) == "baseline1"
    assert champion.metrics["pck_image_12"] > champion.metrics["mean_pose_pck_image_12"]
    assert [entry.action for entry in registry.history("pose-demo")] == ["promote"]
    assert Predictor.load(registry.bundle("pose-demo@champion")).name.startswith("baseline1 ")


@pytest.mark.parametrize("reference", ["pose-demo@champion", "pose-vgg16_regressor/1"])
def test_lineage_is_whole(
    repaired: Summary, registry: Registry, datasets: dict[str, DatasetVersion], reference: str
) -> None:
    traced = registry.trace(reference)
    lineage = traced["lineage"]
    assert lineage.keys() >= LINEAGE
    assert all(lineage[key] for key in LINEAGE)
    assert lineage["data_hash"] == datasets["demo"].data_hash
    assert lineage["dataset"] == "demo"
    assert lineage["command"].startswith("pose train-all --profile ")
    assert traced["run"]["status"] == "FINISHED"
    assert traced["run"]["tags"]["fingerprint"] == lineage["fingerprint"]
    assert lineage["parent"].startswith("train-all-demo-")
    assert traced["run"]["tags"]["parent"] == lineage["parent"]
    run = registry.store.client.get_run(registry.resolve(reference).run_id)
    parent = registry.store.client.get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.info.run_name.startswith("train-all-demo")
    assert traced["run"]["params"]["seed"] == lineage["seed"]
    assert {"model.onnx", "card.md", "params.yaml", "history.jsonl", "evaluation/evaluation.npz"} <= set(
        traced["bundle"]["files"]
    )


def test_the_report_needs_nothing_but_itself(repaired: Summary) -> None:
    page = repaired.report.read_text()
    assert "baseline1" in page
    assert "vgg16_regressor" in page
    links = re.findall(r"""\b(?:src|href|xlink:href)\s*=\s*["']([^"']*)""", page) + re.findall(r"url\(([^)]*)\)", page)
    assert [link for link in links if not link.strip("'\"").startswith(("data:", "#"))] == []
    assert "data:image/" in page


def test_nothing_changed_costs_nothing(
    repaired: Summary, profile: Profile, storage: Path, registry: Registry, untrainable: None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    kept = files(storage / "training", storage / "bundles", storage / "artifacts", storage / "reports")
    before = versions(registry)
    again = train_all(profile())
    assert again == replace(repaired, skipped=["baseline1", "vgg16_regressor"])
    assert files(storage / "training", storage / "bundles", storage / "artifacts", storage / "reports") == kept
    assert versions(registry) == before
    shown = capsys.readouterr().out
    assert re.search(r"^baseline1 .*\bchampion", shown, flags=re.MULTILINE)
    assert re.search(r"^vgg16_regressor ", shown, flags=re.MULTILINE)
    assert again.report.as_uri() in shown


def test_prefect_shows_results_report_and_progress(repaired: Summary) -> None:
    rows = json.loads(artifact("results").data)
    assert {row["architecture"] for row in rows} == {"baseline1", "vgg16_regressor"}
    assert all(float(row["pck_image_12"]) >= 0 and row["version"] for row in rows)
    assert repaired.report.parent.parent.as_uri() in artifact("report").data
    assert "pose-demo" in artifact("summary").data
    for system in ("baseline1", "vgg16-regressor"):
        assert float(artifact(f"training-{system}").data) == 100.0


def test_a_checkpoint_knows_its_record(repaired: Summary, registry: Registry, storage: Path) -> None:
    version = registry.resolve(repaired.versions["baseline1"])
    folder = trained_as(storage, "baseline1", version.fingerprint)
    held = [torch.load(file, weights_only=True)["mlflow_run"] for file in folder.glob("checkpoints/*/state.pt")]
    assert held
    assert set(held) == {version.run_id}


def test_who_waited_for_another_run_of_the_same_takes_its_version(
    repaired: Summary, profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find no version; by the time this one has trained, the other has registered it."""
    asked = []
    real = steps.registered
    monkeypatch.setattr(steps, "registered", lambda job: asked.append(job) or (real(job) if len(asked) > 1 else None))
    monkeypatch.setattr(train_all_module, "evaluate", None)
    summary = train_all(profile(architectures=["baseline1"]))
    assert summary.versions["baseline1"] == repaired.versions["baseline1"]


def test_a_promotion_that_fails_is_named_after_the_report(
    repaired: Summary, profile: Profile, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def busy(*_: object) -> None:
        raise RegistryError("somebody else is promoting")

    monkeypatch.setattr(Registry, "promote_dataset", busy)
    with pytest.raises(TrainingError, match=r"^1 promotion\(s\) failed: pose-demo: somebody else is promoting$"):
        train_all(profile())
    assert re.search(r"^report +file:", capsys.readouterr().out, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("error", "helps"),
    [(ConnectionResetError(104, "reset"), True), (OSError(113, "no route to host"), True),
     (requests.ConnectionError("away"), True), (TimeoutError(), True),
     (FileNotFoundError(2, "no file"), False), (OSError(28, "disk full"), False), (TrainingError("bad"), False)],
)  # fmt: skip
def test_only_what_may_pass_is_tried_again(error: Exception, helps: bool) -> None:
    state: Any = SimpleNamespace(result=lambda raise_on_failure: error)
    assert train_all_module._passing(None, None, state) is helps
    assert train_all_module._registry_away(None, None, state) is helps


def test_a_registry_that_is_away_is_asked_again_and_a_bad_bundle_is_not() -> None:
    for error, helps in ((RegistryAwayError("away"), True), (RegistryError("bundle lacks model.onnx"), False)):
        state: Any = SimpleNamespace(result=lambda raise_on_failure, error=error: error)
        assert train_all_module._registry_away(None, None, state) is helps


@pytest.mark.parametrize(
    ("system", "view", "boxes", "said"),
    [("simple_baseline", "person", None, True), ("simple_baseline", "person", Path("boxes.json"), False),
     ("simple_baseline", "image", None, False), ("openpose", "person", None, False)],
)  # fmt: skip
def test_who_has_no_detected_boxes_is_named_once(
    system: str, view: str, boxes: Path | None, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    params = SimpleNamespace(dataset_params=SimpleNamespace(crop=SimpleNamespace(view=view)))
    job: Any = SimpleNamespace(system=system, params=params, detections=boxes)
    train_all_module._mind_missing_boxes([job, job])
    text = capsys.readouterr().err
    assert text.count("\n") == said
    assert ("person_detector" in text and "evaluation.detections" in text) is said


# ---------------------------------------------------------------- other figures, other data


def test_other_images_to_compare_on_train_nothing(
    repaired: Summary, profile: Profile, storage: Path, registry: Registry, untrainable: None
) -> None:
    kept = files(storage / "training")
    other = profile(architectures=["baseline1"], evaluation={"resamples": 100, "gallery": 2, "split": "val"})
    summary = train_all(other)
    assert summary.skipped == []
    assert files(storage / "training") == kept
    new, old = registry.resolve(summary.versions["baseline1"]), registry.resolve(repaired.versions["baseline1"])
    assert new.version > old.version
    assert new.fingerprint == old.fingerprint
    assert new.tags["split"].startswith("val of ")
    assert old.tags["split"].startswith("test of ")
    # The champion, evaluated anew on the same images, is the same network: no difference, no promotion.
    decision = json.loads(new.tags["decision"])
    assert (decision["promoted"], decision["difference"], decision["champion"]) == (False, 0.0, old.version)


def test_seventeen_joints_go_through_the_same_doors(
    flow_world: dict[str, DatasetVersion], profile: Profile, registry: Registry
) -> None:
    summary = train_all(profile(dataset="synthetic", architectures=["baseline1"]))
    assert summary.champion == "models:/pose-synthetic@champion"
    traced = registry.trace("pose-synthetic@champion")
    assert traced["lineage"]["data_hash"] == flow_world["synthetic"].data_hash
    described = json.loads((registry.bundle("pose-synthetic@champion") / "model.json").read_text())
    assert (described["skeleton"], len(described["joints"])) == ("coco17", 17)


# ---------------------------------------------------------------- without MLflow


def test_without_mlflow_the_training_is_kept_and_registered_later(
    flow_world: dict[str, DatasetVersion], profile: Profile, storage: Path, registry: Registry,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    alone = profile(architectures=["baseline1"], seed=2)
    before = versions(registry)
    existing = set((storage / "training").glob("*")) if (storage / "training").exists() else set()
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", NOWHERE)
        away.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        away.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
        result = CliRunner().invoke(app, ["train-all", "--profile", alone])
    assert result.exit_code == TrainingError.exit_code
    paragraph = result.stderr.strip().splitlines()[-1]
    assert paragraph.startswith("TrainingError: 1 architecture(s) failed")
    assert f"baseline1: MLflow at {NOWHERE} does not answer" in paragraph
    assert "Traceback" not in result.stderr

    (run_dir,) = set((storage / "training").iterdir()) - existing
    history = [json.loads(line) for line in (run_dir / "history.jsonl").read_text().splitlines()]
    journal = [json.loads(line) for line in (storage / "journals" / f"{run_dir.name}-{run_dir.name[-12:]}.jsonl")
               .read_text().splitlines()]  # fmt: skip
    assert [line["from"] for line in journal if "from" in line] == [f"epoch {record['epoch']}" for record in history]
    assert journal[-1]["status"] == "FAILED"

    kept = files(run_dir)
    with monkeypatch.context() as back:
        back.setattr(pose.training.loop, "train", None)
        summary = train_all(alone)
    assert summary.skipped == []
    assert files(run_dir) == kept
    assert versions(registry)["pose-baseline1"] == before.get("pose-baseline1", 0) + 1
    version = registry.resolve(summary.versions["baseline1"])
    assert trained_as(storage, "baseline1", version.fingerprint) == run_dir
    points = registry.store.client.get_metric_history(version.run_id, "val/pck_image_12")
    assert {(point.step, point.value) for point in points} == {
        (record["epoch"], record["val"]["pck_image_12"]) for record in history
    }
    assert len(points) == len(history)
    assert registry.store.client.get_run(version.run_id).info.status == "FINISHED"
