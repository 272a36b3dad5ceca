"""Every regressor through the same doors."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from pose.config_loading import load
from pose.errors import ConfigError, TrainingError
from pose.skeleton import COCO17, LSP14
from pose.systems import SYSTEMS, create, restore
from pose.systems.base import multiply_accumulates, parameter_count

PUBLISHED_SIZES = {
    # input px, parameters, GMAC: the table of the specifications, counted there by hand-written layer sums.
    "baseline1": (128, 69_284_330, 0.318),
    "baseline2": (128, 35_934_826, 0.494),
    "alexnet": (224, 58_461_610, 1.014),
    "vgg19": (224, 173_304_938, 19.66),
    "vgg16_regressor": (224, 27_583_068, 15.36),
}
NAMES = list(PUBLISHED_SIZES)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_and_multiply_accumulates_at_the_papers_sizes(name):
    input_size, parameters, giga = PUBLISHED_SIZES[name]
    with torch.device("meta"):
        system = create(name, load().systems[name], LSP14)
        macs = multiply_accumulates(system)
    assert system.params.input_size == (input_size, input_size)
    assert parameter_count(system.network) == parameters
    assert macs / 1e9 == pytest.approx(giga, abs=0.005)


@pytest.mark.parametrize("profile", ["demo", "lspet-cpu", "lspet-gpu"])
def test_every_profile_describes_networks_that_can_be_built(profile):
    params = load(profile)
    for name in NAMES:
        with torch.device("meta"):
            assert parameter_count(create(name, params.systems[name], LSP14).network) > 0


@pytest.mark.parametrize("name", NAMES)
def test_groups_are_the_whole_network_without_overlap(tiny, name):
    system = tiny(name)
    grouped = [id(p) for modules in system.groups.values() for module in modules for p in module.parameters()]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in system.network.parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_term_is_a_finite_scalar_and_together_they_reach_every_parameter(tiny, random_batch, name):
    system = tiny(name)
    batch = random_batch(system)
    losses = system.loss(system.network(batch.images), batch)
    assert set(losses) == set(system.loss_terms)
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    silent = [key for key, p in system.network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("name", NAMES)
def test_coco_skeleton_gives_seventeen_joints(tiny, random_batch, name):
    system = tiny(name, skeleton=COCO17)
    batch = random_batch(system)
    outputs = system.network(batch.images)
    assert sum(system.loss(outputs, batch).values()).isfinite()
    assert system.decode(outputs, batch).keypoints.shape == (4, 17, 2)


@pytest.mark.parametrize("name", NAMES)
def test_decoding_the_truth_gives_the_truth_in_original_pixels(tiny, random_batch, name):
    system = tiny(name)
    batch = random_batch(system)
    batch = replace(batch, keypoints=batch.keypoints.nan_to_num(3.0), labelled=torch.ones_like(batch.labelled))
    turn = torch.tensor([[2.0, -0.5, 30.0], [0.25, 3.0, -7.0]])
    batch = replace(batch, to_original=turn.repeat(len(batch), 1, 1))
    outputs = {
        "coordinates": batch.keypoints / torch.tensor(system.params.input_size),
        "presence": 40 * batch.presence - 20,
    }
    assert system.loss(outputs, batch)["coordinates"] == pytest.approx(0, abs=1e-10)
    people = system.decode(outputs, batch)
    for person in range(len(batch)):
        for joint in range(LSP14.size):
            x, y = batch.keypoints[person, joint].tolist()
            wanted = (2 * x - 0.5 * y + 30, 0.25 * x + 3 * y - 7)
            assert people.keypoints[person, joint] == pytest.approx(wanted, abs=1e-3)
    assert people.image_ids.tolist() == [0, 1, 2, 3]
    if "presence" in system.loss_terms:
        assert people.presence == pytest.approx(batch.presence.numpy(), abs=1e-6)
    else:
        assert (people.presence == 1).all()
    assert people.scores == pytest.approx(people.presence)


@pytest.mark.parametrize(
    ("name", "change"),
    [(name, {"batch_norm": on}) for name in NAMES if name != "vgg16_regressor" for on in (False, True)]
    + [("vgg16_regressor", {})],
)
def test_learns_six_noise_images_by_heart(tiny, random_batch, name, change):
    system = tiny(name, **change)
    batch = random_batch(system, people=6)
    optimiser = torch.optim.Adam(system.network.parameters(), lr=2e-3)
    for _ in range(250):
        outputs = system.network(batch.images)
        losses = system.loss(outputs, batch)
        if losses["coordinates"] < 2e-4 and losses.get("presence", 0) < 0.02:
            break
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
    assert losses["coordinates"] < 2e-4, "a mean pose has about 0.08"
    people = system.decode(outputs, batch)
    if "presence" in losses:
        assert ((people.presence > 0.5) == batch.presence.numpy().astype(bool)).all()
    error = torch.from_numpy(people.keypoints) - batch.keypoints
    assert error[batch.labelled].abs().max() < min(system.params.input_size) / 12


@pytest.mark.parametrize("name", NAMES)
def test_restored_weights_answer_alike(tiny, random_batch, tmp_path, name):
    system, other = tiny(name), tiny(name)
    torch.nn.init.normal_(next(other.network.parameters()))
    save_file(system.network.state_dict(), tmp_path / "model.safetensors")
    images = random_batch(system).images
    wanted = system.network.eval()(images)
    got = restore(other, tmp_path / "model.safetensors").network(images)
    assert not other.network.training
    for key in wanted:
        assert torch.equal(got[key], wanted[key])


def test_weights_of_another_system_are_refused_by_name(tiny, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(tiny("baseline1").network.state_dict(), path)
    with pytest.raises(TrainingError, match=r"model\.safetensors does not fit.*missing: features\.6\.weight"):
        restore(tiny("baseline2"), path)


def test_broken_weights_are_refused_by_name(tiny, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(tiny("baseline1").network.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TrainingError, match=r"model\.safetensors cannot be read"):
        restore(tiny("baseline1"), path)
    with pytest.raises(TrainingError, match=r"absent\.safetensors cannot be read"):
        restore(tiny("baseline1"), tmp_path / "absent.safetensors")


def test_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'resnet'.*baseline1.*vgg16_regressor"):
        create("resnet", load().systems["baseline1"], LSP14)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"train": ["trunk", "nose"]}, r"systems\.baseline1\.recipes\.paper\.phases\[1\]\.train names 'nose'.*trunk"),
        ({"losses": {"heat": 1.0}}, r"systems\.baseline1\.recipes\.paper\.phases\[1\]\.losses names 'heat'.*presence"),
    ],
)
def test_phases_name_known_groups_and_losses(tiny, change, key):
    recipes = load().systems["baseline1"].model_dump()["recipes"]
    recipes["paper"]["phases"][1] |= change
    with pytest.raises(ConfigError, match=key):
        tiny("baseline1", recipes=recipes)


@pytest.mark.parametrize(
    ("name", "size", "least"), [("alexnet", 66, 67), ("vgg19", 31, 32), ("vgg16_regressor", 16, 32)]
)
def test_too_small_an_input_is_refused_by_key(tiny, name, size, least):
    with pytest.raises(ConfigError, match=rf"systems\.{name}\.input_size is \({size}, {size}\).*at least {least} px"):
        tiny(name, input_size=size)
    system = tiny(name, input_size=least)
    assert system.network.eval()(torch.zeros(1, 3, least, least))["coordinates"].shape == (1, 14, 2)


def test_every_card_names_its_source_and_its_figure():
    figures = {
        "baseline1": "82.53",
        "baseline2": "83.21",
        "alexnet": "88.82",
        "vgg19": "84.44",
        "vgg16_regressor": "0.0878",
    }
    for name, figure in figures.items():
        system = SYSTEMS[name]
        assert figure in system.card.published
        assert system.card.title
        assert "report" in system.card.source
        assert "research use only" in system.card.licence
