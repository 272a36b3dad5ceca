"""The flow promote and its way back, with bundles that train-all made."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.artifacts import Artifact
from typer.testing import CliRunner

from flows.promote import promote
from flows.train_all import Summary
from pose.cli import app
from pose.errors import RegistryError
from pose.evaluation import Evaluation
from pose.registry import Registry, Version

pytestmark = pytest.mark.timeout(600)  # the first test starts Prefect's server and MLflow's database

METRIC = "pck_image_12"


@pytest.fixture
def offer(repaired: Summary, registry: Registry, tmp_path: Path) -> Callable[..., Version]:
    """Registers copies of a trained bundle, with another evaluation, as versions of a model of this test alone."""
    origin = registry.resolve(repaired.versions["baseline1"])
    model = f"pose-{uuid4().hex[:8]}"

    def register(change: Callable[[Evaluation], Evaluation] = lambda evaluation: evaluation) -> Version:
        identity = uuid4().hex
        bundle = tmp_path / identity
        shutil.copytree(registry.bundle(origin.uri), bundle)
        (bundle / "copy").write_text(identity)
        evaluation = change(Evaluation.load(bundle / "evaluation"))
        evaluation.save(bundle / "evaluation")
        run = registry.start_run("offered", identity, {"dataset": "demo"}, {})
        run.finish()
        return registry.register(bundle, model, run, {"dataset": "demo"}, evaluation.metrics)

    return register


def perfect(evaluation: Evaluation) -> Evaluation:
    """Every joint found."""
    _, labelled = evaluation.per_image[METRIC]
    return replace(
        evaluation,
        metrics=evaluation.metrics | {METRIC: 1.0},
        per_image=evaluation.per_image | {METRIC: (labelled, labelled)},
    )


def on_val(evaluation: Evaluation) -> Evaluation:
    """What it says was measured elsewhere."""
    return replace(perfect(evaluation), split="val", image_ids=evaluation.image_ids + 1000)


def test_only_a_better_one_moves_the_champion(
    offer: Callable[..., Version], registry: Registry, profile: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, same, better = offer(), offer(), offer(perfect)
    decided = [promote(version.uri, profile(), "a test").promoted for version in (first, same, better)]
    assert decided == [True, False, True]
    assert registry.resolve(f"{first.name}@champion").version == better.version
    shown = Artifact.get("promotion")
    assert shown is not None
    assert f"**{better.uri}** promoted: {METRIC} +" in str(shown.data)

    again = promote(f"{first.name}@champion", profile())
    assert (again.promoted, again.reason) == (False, "is the champion already")

    back = CliRunner().invoke(app, ["registry", "rollback", first.name, "--why", "it limps", "--profile", profile()])
    assert back.exit_code == 0, back.stderr
    assert registry.resolve(f"{first.name}@champion").version == first.version
    moves = [(e.action, e.from_version, e.to_version, e.why) for e in registry.history(first.name)]
    assert moves == [
        ("promote", None, first.version, "a test"),
        ("promote", first.version, better.version, "a test"),
        ("rollback", better.version, first.version, "it limps"),
    ]


def test_figures_from_other_images_are_not_compared(
    offer: Callable[..., Version], registry: Registry, profile: Callable[..., str]
) -> None:
    """The champion is evaluated anew on this configuration's images; the challenger was measured on others."""
    champion, challenger = offer(), offer(on_val)
    assert promote(champion.uri, profile()).promoted
    with pytest.raises(RegistryError, match=rf"{champion.name}/{champion.version} was evaluated anew.* on demo val"):
        promote(challenger.uri, profile())
    assert registry.resolve(f"{champion.name}@champion").version == champion.version


def test_an_unknown_version_is_named(repaired: Summary, profile: Callable[..., str]) -> None:
    with pytest.raises(RegistryError, match="pose-baseline1 has no version 4711"):
        promote("models:/pose-baseline1/4711", profile())
