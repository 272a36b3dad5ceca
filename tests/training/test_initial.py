"""Weights that a training begins with: of torchvision's classifiers, of releases, of our own folders."""

import re
import shutil
from dataclasses import replace

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from pose.config_loading import load
from pose.errors import ConfigError, TrainingError
from pose.official import begin
from pose.skeleton import LSP14
from pose.systems import create
from pose.training import Outcome
from pose.training.loop import train

RESNET = "ResNet18_Weights.IMAGENET1K_V1"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Torch's cache, with torchvision's files of random weights in it instead of a network's."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)

    def put(name: str, state: dict) -> None:
        torch.save(state, folder / torchvision.models.get_weight(name).url.rsplit("/", 1)[-1])

    return put


def classifier(model: str) -> dict:
    """A torchvision classifier's weights, none of which are what a fresh network has."""
    state = torchvision.models.get_model(model, weights=None, num_classes=3).state_dict()
    return {key: torch.rand_like(value) if value.is_floating_point() else value for key, value in state.items()}


def fresh(name: str, initial: str, **changes):
    """A system whose params name these weights."""
    whole = load().systems[name]
    block = {**whole.model_dump(), "recipe": "modern", "initial": initial, **changes}
    params = type(whole).model_validate(block)
    return create(name, params, LSP14)


RCNN = {"depth": 18, "norm": "batch", "pyramid_channels": 8, "box_hidden": 8, "input_size": 64}


VGG = "VGG19_BN_Weights.IMAGENET1K_V1"


@pytest.mark.parametrize(
    ("name", "model", "weights", "tensors", "changes"),
    [
        ("simple_baseline", "resnet18", RESNET, 120, {"depth": 18, "deconvolutions": [8]}),
        ("alphapose", "resnet18", RESNET, 120, {"pose": {"depth": 18}, "upsampling": [8]}),
        ("person_detector", "resnet18", RESNET, 120, RCNN),
        ("deepcut", "resnet18", RESNET, 120, {"depth": 18}),
        ("openpose", "vgg19_bn", VGG, 70, {}),
        ("openpose", "vgg19_bn", VGG, 70, {"variant": "paf_first"}),
    ],
)
def test_a_trunk_begins_as_torchvision_s_classifier(cache, name, model, weights, tensors, changes):
    state = classifier(model)
    cache(weights, state)
    system = fresh(name, weights, **changes)
    begin(name, system)
    network = system.network
    trunk = {
        "alphapose": lambda: network.pose.trunk,
        "person_detector": lambda: network.backbone.body,
        "simple_baseline": lambda: network,
    }.get(name, lambda: network.trunk)()
    # Squeeze and excitation wraps a normalisation, whose weights lie a level deeper then.
    ours = {re.sub(r"(bn\d)\.0\.", r"\1.", key): value for key, value in trunk.state_dict().items()}
    theirs = {key.removeprefix("features."): value for key, value in state.items()}
    shared = ours.keys() & theirs.keys()
    assert len(shared) == tensors
    assert all(torch.equal(ours[key], theirs[key]) for key in shared)


def test_finished_weights_need_no_training(spec):
    first = spec()
    train(first)
    idle = [phase | {"epochs": 0} for phase in first.recipe.model_dump()["phases"]]
    again = spec(phases=idle, system={"initial": str(first.run_dir)})
    train(again)
    outcome = Outcome.load(again.run_dir)
    assert outcome.weights_sha256 == Outcome.load(first.run_dir).weights_sha256
    assert (again.run_dir / "history.jsonl").read_text() == ""
    assert (outcome.epochs, outcome.history, outcome.best_metric) == (0, [], None)
    with pytest.raises(ValueError, match=r"every phase has 0 epochs, so nothing would be trained"):
        spec(phases=idle)


def test_a_training_goes_on_from_another_s_weights_wherever_they_lie(spec, tmp_path):
    first = spec()
    train(first)
    second = spec(system={"initial": str(first.run_dir)})
    moved = shutil.copytree(first.run_dir, tmp_path / "elsewhere")
    assert second.fingerprint != first.fingerprint
    assert second.fingerprint == spec(system={"initial": str(moved)}).fingerprint
    train(second)
    losses = [Outcome.load(each.run_dir).history[0]["train"]["loss"] for each in (first, second)]
    assert losses[1] < losses[0]


def test_a_file_that_changes_is_another_training(spec, tmp_path):
    file = tmp_path / "first.safetensors"
    digests = []
    for value in (0.0, 1.0):
        save_file({"x": torch.full((1,), value)}, file)
        digests.append(spec(system={"initial": str(file)}).fingerprint)
    assert digests[0] != digests[1]


def test_weights_that_cannot_be_had_say_what_to_do(cache, tmp_path, monkeypatch, spec):
    def away(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", away)
    key = r"^systems\.simple_baseline\.initial is ResNet18_Weights\.\w+: "
    with pytest.raises(TrainingError, match=rf"{key}they could not be had \(no route.*put them into \S+/resnet18-"):
        begin("simple_baseline", fresh("simple_baseline", RESNET, depth=18))
    for rubbish in ("", "<html>not found</html>"):
        (tmp_path / "hub/checkpoints/resnet18-f37072fd.pth").write_text(rubbish)
        with pytest.raises(TrainingError, match=rf"{key}\S+/resnet18-f37072fd\.pth holds no weights; remove it"):
            begin("simple_baseline", fresh("simple_baseline", RESNET, depth=18))
    with pytest.raises(ConfigError, match=rf"{key}torchvision \S+ has no weights of this name"):
        begin("simple_baseline", fresh("simple_baseline", "ResNet18_Weights.NONE", depth=18))
    with pytest.raises(
        ConfigError, match=r"^systems\.cpm\.initial is 'nowhere\.pth' \(from --set.*there is no file \S+/nowh"
    ):
        load("crowd-cpu", ["systems.cpm.initial=nowhere.pth"])
    with pytest.raises(ConfigError, match=r"there is no file \S+/nowhere\.pth; expected a file of weights, a training"):
        train(spec(system={"initial": "nowhere.pth"}))


def test_a_system_without_such_a_trunk_refuses_a_classifier(cache, spec):
    cache(RESNET, classifier("resnet18"))
    with pytest.raises(ConfigError, match=r"Baseline-1 has no trunk that torchvision's image classifiers have"):
        train(spec(system={"initial": RESNET}))


def untrained(name: str) -> dict:
    """A recipe by which nothing is trained."""
    recipe = load().systems[name].model_dump()["recipes"]["modern"]
    return {"recipes": {"modern": recipe | {"phases": [phase | {"epochs": 0} for phase in recipe["phases"]]}}}


def test_a_classifier_s_weights_alone_are_no_finished_system(cache):
    cache(RESNET, classifier("resnet18"))
    system = fresh("simple_baseline", RESNET, depth=18, **untrained("simple_baseline"))
    with pytest.raises(ConfigError, match=r"an image classifier's, which trains a trunk alone; give some phase epochs"):
        begin("simple_baseline", system)


def test_a_release_wants_the_recipe_that_reads_it_as_it_does(tmp_path):
    whole = fresh("simple_baseline", RESNET, depth=18)
    skipped = ("input_gain", "input_shift")
    release = {key: value for key, value in whole.network.state_dict().items() if key not in skipped}
    torch.save(release, tmp_path / "release.pth")
    with pytest.raises(ConfigError, match=r"read with .*convention: official; recipe 'modern' says otherwise"):
        begin("simple_baseline", fresh("simple_baseline", str(tmp_path / "release.pth"), depth=18))
    system = fresh("simple_baseline", str(tmp_path / "release.pth"), depth=18, recipe="paper")
    begin("simple_baseline", system)
    assert torch.equal(system.network.layer1[0].conv1.weight, whole.network.layer1[0].conv1.weight)


@pytest.mark.parametrize("trained", [True, False])
def test_a_training_at_another_size_has_the_anchors_of_its_params(tmp_path, trained):
    """KAPAO's anchors grow with the input, and lie among the weights; taken as they are, weights keep theirs."""
    small = fresh("kapao", RESNET, width=0.125, input_size=64)
    torch.save(small.network.state_dict(), tmp_path / "small.pt")
    changes = {} if trained else untrained("kapao")
    system = fresh("kapao", str(tmp_path / "small.pt"), width=0.125, input_size=128, **changes)
    begin("kapao", system)
    for key in ("anchors", "anchor_grid"):
        ours, theirs = (getattr(each.yolo.detect, key) for each in (system, small))
        torch.testing.assert_close(ours, theirs * (2 if trained else 1))
    assert torch.equal(system.yolo.model[0].conv.conv.weight, small.yolo.model[0].conv.conv.weight)


def test_a_folder_of_ours_taken_as_it_is_wants_the_recipe_that_reads_it(spec):
    first = spec()
    folder = first.run_dir.with_name("theirs")
    block = fresh("simple_baseline", RESNET, depth=18, recipe="paper")
    folder.mkdir(parents=True)
    save_file(block.network.state_dict(), folder / "model.safetensors")
    params = first.params.model_copy(update={"systems": {"simple_baseline": block.params}})
    (folder / "spec.json").write_text(replace(first, system="simple_baseline", params=params, recorded="x").to_json())
    system = fresh("simple_baseline", str(folder), depth=18, **untrained("simple_baseline"))
    with pytest.raises(ConfigError, match=r"read with loss: squared_error.*recipe 'modern' says otherwise"):
        begin("simple_baseline", system)
    begin("simple_baseline", further := fresh("simple_baseline", str(folder), depth=18))
    assert torch.equal(further.network.conv1.weight, block.network.conv1.weight)
