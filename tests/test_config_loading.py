"""Every wrong key or value ends in an error that names it; overlays touch what they name and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pose.config import ROOT
from pose.config_loading import load, load_dataset, profiles, read_yaml, retuned
from pose.errors import ConfigError
from pose.systems import SYSTEMS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "infra" / "profiles", tmp_path / "infra" / "profiles")
    return tmp_path


@pytest.mark.parametrize("profile", [None, *profiles()])
def test_every_profile_is_valid(profile: str | None) -> None:
    params = load(profile)
    assert set(params.architectures) <= set(params.systems)


def test_person_view_maps_meet_half_bodies_but_not_in_the_short_trainings_of_cpus() -> None:
    names = ("cpm", "simple_baseline", "alphapose")
    for profile in (None, *profiles()):
        params = load(profile)
        for name in names:
            recipe = params.systems[name].recipes["modern"]
            on_cpu = profile is not None and profile.endswith("-cpu") and name in params.architectures
            assert (recipe.augment.half_body, recipe.augment.erase) == ((0, 0) if on_cpu else (0.3, 0.3))


def test_resolved_configuration_is_plain_and_complete() -> None:
    resolved = load("demo").model_dump(mode="json")
    assert resolved["dataset"] == "demo"
    assert resolved["systems"]["baseline1"]["recipes"]["modern"]["phases"][1]["epochs"] > 0
    assert yaml.safe_load(yaml.safe_dump(resolved)) == resolved


def test_override_changes_one_system_though_a_profile_shares_its_recipe() -> None:
    plain = load("demo")
    changed = load("demo", overrides=["systems.baseline1.recipes.modern.phases.0.epochs=3"])
    assert changed.systems["baseline1"].recipes["modern"].phases[0].epochs == 3
    for name in ("baseline2", "alexnet", "vgg19"):
        assert changed.systems[name] == plain.systems[name]


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_a_trained_network_is_used_with_can_be_given_anew(name: str) -> None:
    params = load().systems[name]
    assert params.test_time <= set(type(params).model_fields)
    with pytest.raises(
        ConfigError, match=r"--set systems\.\w+\.input_size=64 would change nothing.* train or import again"
    ):
        retuned(name, params, [f"systems.{name}.input_size=64"])
    with pytest.raises(ConfigError, match=f"would change nothing: the model is of {name}"):
        retuned(name, params, ["systems.other.flip_test=false"])
    assert retuned(name, params, ["evaluation.split=val"]) == params


def test_a_trained_models_other_numbers_stay() -> None:
    params = load().systems["openpose"]
    given = ["systems.openpose.grouping.peak=0.35", "systems.openpose.scales=[0.5, 1.0]"]
    found = retuned("openpose", params, given)
    assert (found.grouping.peak, found.scales) == (0.35, [0.5, 1.0])
    same = {"grouping": params.grouping.model_copy(update={"peak": 0.35}), "scales": [0.5, 1.0]}
    assert found == params.model_copy(update=same)
    with pytest.raises(
        ConfigError, match=r"systems\.openpose\.grouping\.peak is 'high' \(from --set .*\): expected a valid"
    ):
        retuned("openpose", params, ["systems.openpose.grouping.peak=high"])


def test_params_have_no_anchors() -> None:
    tokens = yaml.scan((ROOT / "params.yaml").read_text())
    shared = [token for token in tokens if isinstance(token, (yaml.AnchorToken, yaml.AliasToken))]
    assert [(token.value, token.start_mark.line + 1) for token in shared] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("systems.baseline2.recipes.paper.batch_size", 32),
        ("systems.vgg19.recipes.modern.batch_size", 32),
        ("data.lspet.check.min_visible", 4),
        ("data.coco.check.min_visible", 4),
    ],
)
def test_dvc_changes_the_one_value_that_it_is_told_to(root: Path, key: str, value: int) -> None:
    """What `dvc exp run -S` does before it runs anything."""
    from dvc.utils.hydra import apply_overrides

    plain = leaves(yaml.safe_load((root / "params.yaml").read_text()))
    apply_overrides(root / "params.yaml", [f"{key}={value}"])
    changed = leaves(yaml.safe_load((root / "params.yaml").read_text()))
    assert changed == plain | {key: value}
    assert plain[key] != value


def leaves(node: Any, at: str = "") -> dict[str, Any]:
    """Every value of a tree by its dotted path; an empty block is a value."""
    if not isinstance(node, (dict, list)) or not node:
        return {at: node}
    items = node.items() if isinstance(node, dict) else enumerate(node)
    return {path: leaf for key, child in items for path, leaf in leaves(child, f"{at}.{key}".lstrip(".")).items()}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.precison=bf16", ["training.precison", "did you mean 'precision'"]),
        ("training.precision=fp8", ["training.precision", "'fp8'", "'fp32' or 'bf16'", "--set training.precision=fp8"]),
        ("systems.baseline1.recipes.modern.optimiser.lr=-1", ["optimiser.lr", "-1", "greater than 0"]),
        ("systems.baseline1.recipes.modern.batch_size=0", ["batch_size", "0", "greater than or equal to 1"]),
        ("systems.vgg91.input_size=3", ["systems.vgg91", "did you mean 'vgg19'"]),
        ("architectures=[baseline3]", ["baseline3", "did you mean"]),
        ("architectures=[vgg19, vgg19]", ["'vgg19' twice"]),
        ("dataset=lsptet", ["lsptet", "did you mean 'lspet'"]),
        ("systems.baseline1.recipes.paper.phases.0.train=[trunc]", ["phases[0].train", "'trunc'", "trunk"]),
        ("systems.baseline1.recipes.paper.phases.0.losses={presense: 1}", ["phases[0].losses", "'presense'"]),
        ("systems.baseline1.recipe=papr", ["systems.baseline1", "papr", "paper"]),
        ("data.lspet.crop.size=3", ["data", "DVC"]),
        ("seed", ["a.b=value"]),
        ("systems.baseline1.recipes.modern.optimiser.lr=.inf", ["optimiser.lr", "inf", "finite"]),
        ("seed=99999999999999999999999", ["seed", "99999999999999999999999", "4294967296"]),
        ("training.ray.min_workers=4", ["min_workers is 4", "more than workers (1)"]),
        ("systems.vgg16_regressor.recipes.paper.phases.0.epochs=0", ["vgg16_regressor", "recipes.paper", "0 epochs"]),
        ("training.ray.workers=many", ["training.ray.workers", "'many'", "integer"]),
        ("architectures.0.x=1", ["--set architectures.0.x=1", "architectures.0 is", "'baseline1'", "no keys"]),
        ("systems.cpm.trunk_channels.0.x=1", ["systems.cpm.trunk_channels.0 is", "128", "no keys"]),
        ("training.ray.address.x=1", ["training.ray.address is", "None", "no keys"]),
        ("architectures.5=cpm", ["architectures.5", "a list of 5"]),
        ("architectures.²=cpm", ["architectures.²", "a list of 5"]),
        ("systems.baseline1.recipes.paper.phases.x.epochs=1", ["recipes.paper.phases.x", "a list of 2"]),
        ("evaluation.detections=nope.json", ["evaluation.detections", "nope.json", "(from --set", "no such file"]),
        ("evaluation.detections=/nope/boxes.json", ["evaluation.detections", "/nope/boxes.json", "no such file"]),
    ],
)  # fmt: skip
def test_wrong_override_names_key_value_and_expectation(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(overrides=[override])
    for word in words:
        assert word in str(caught.value)


def test_detections_that_are_there_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text("[]")
    given = tmp_path / "boxes.json"
    assert load(overrides=[f"evaluation.detections={given}"]).detections_path == given


def test_boxes_of_the_runs_detector_need_one_in_the_run() -> None:
    asked = "systems.alphapose.proposals.detections=detector"
    assert load(overrides=[asked]).systems["alphapose"].awaits, "alphapose is not in this run"
    load(overrides=[asked, "architectures=[alphapose, person_detector]"])
    with pytest.raises(
        ConfigError,
        match=r"proposals\.detections asks .* \(from --set .*\), but `architectures` has no person_detector",
    ):
        load(overrides=[asked, "architectures=[alphapose]"])


def test_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown profile 'dmo'.*did you mean 'demo'"):
        load("dmo")


def test_an_error_in_a_profile_names_the_profile(root: Path) -> None:
    path = root / "infra" / "profiles" / "demo.yaml"
    path.write_text(path.read_text() + "\nparalel: 2\n")
    with pytest.raises(ConfigError, match=r"paralel is not a known key \(from demo\.yaml\).*'parallel'"):
        load("demo", root=root)


def test_a_key_given_twice_is_refused(root: Path) -> None:
    with (root / "params.yaml").open("a") as file:
        file.write("\nseed: 21\n")
    with pytest.raises(ConfigError, match="'seed' is given twice"):
        load(root=root)


def test_a_list_cannot_be_a_key(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set seed=\{\[1\]: 2\} is not valid: .* found unhashable key"):
        load(overrides=["seed={[1]: 2}"], root=root)


def test_exponents_are_numbers() -> None:
    assert read_yaml("[1e-3, 5E2, -1e3, 1.5e-2]", "test") == [0.001, 500.0, -1000.0, 0.015]
    assert read_yaml("[e3, 1e, 12]", "test") == ["e3", "1e", 12]


def test_missing_and_impossible_dataset_blocks(root: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'demo'"):
        load_dataset("dem", root)
    tree = yaml.safe_load((root / "params.yaml").read_text())
    tree["data"]["demo"]["split"]["test"] = 0.5
    (root / "params.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=r"data\.demo\.split.*1\.35, expected 1"):
        load_dataset("demo", root)
