"""OpenPose: its three networks against restatements, targets and masks, decoding, averaging, export, learning."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from scene_examples import noise_scene, trained, write_drawn

from pose.config import CropParams, ExportParams
from pose.config_loading import load
from pose.data.scenes import SceneLoader, SceneSplit, unlabelled
from pose.errors import ConfigError, PoseError, TrainingError
from pose.export import export, exported_network, onnx_network, write_programs
from pose.export_scenes import OUTPUTS, DeployedScene, inputs
from pose.inference.weights import trained as released
from pose.skeleton import COCO17, LSP14, Skeleton
from pose.systems import create, restore
from pose.systems.base import multiply_accumulates, parameter_count
from pose.training.distributed import World
from pose.training.settings import seed_rank

VARIANTS = ["two_branch", "shared", "paf_first"]
SIZE = 96
# pytest listens to every logger, which turns on torch's structured trace of each step of an export.
logging.getLogger("torch.__trace").disabled = True
SMALL = {
    "input_size": SIZE, "trunk": [8, 12, 16], "features": [16, 12],
    "two_branch": {"stages": 3, "first": [12, 16], "later": 12, "kernel": 7},
    "paf_first": {"field_stages": 2, "heat_stages": 2, "first": [6, 8], "later": [6, 8]},
}  # fmt: skip
every_variant = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(variant, skeleton=LSP14, seed=0, **changes):
    whole = load().systems["openpose"]
    torch.manual_seed(seed)
    return create(
        "openpose", type(whole).model_validate({**whole.model_dump(), "variant": variant, **changes}), skeleton
    )


def tiny(variant, skeleton=LSP14, **changes):
    return make(variant, skeleton, **{**SMALL, **changes})


def scene(skeleton, people, seed=1):
    return noise_scene(skeleton, people, SIZE, seed)


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("variant", "parameters", "tensors"),
    [("two_branch", 52_311_446, 184), ("shared", 17_172_146, 72), ("paf_first", 26_050_878, 327)],
)
def test_sizes_are_the_published_ones(variant, parameters, tensors):
    with torch.device("meta"):
        system = make(variant, COCO17, recipe="paper")
    assert parameter_count(system.network) == parameters
    assert len(system.network.state_dict()) == tensors
    assert system.params.stride == 8


@every_variant
def test_multiply_accumulates_are_counted_without_weights(variant):
    """The mirrored image is another pass."""
    with torch.device("meta"):
        both, alone = (
            multiply_accumulates(make(variant, COCO17, recipe="paper", input_size=64, flip_test=flip))
            for flip in (True, False)
        )
    assert both == 2 * alone > 2e9


def two_branch(state, images, stages, again=False):
    """The six-stage network in the words of its layout: model0.N, modelT_1 for fields, modelT_2 for heats."""

    def run(name, x, steps, kernel):
        for n in range(steps):
            weight = state[f"{name}.{2 * n}.weight"]
            x = F.conv2d(x, weight, state[f"{name}.{2 * n}.bias"], padding=weight.shape[-1] // 2)
            x = x if n == steps - 1 else F.relu(x)
        return x

    x = images
    for n in (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25):
        if n in (5, 10, 19):
            x = F.max_pool2d(x, 2)
        x = F.relu(F.conv2d(x, state[f"model0.{n}.weight"], state[f"model0.{n}.bias"], padding=1))
    features, answers = x, [[], []]
    for stage in range(1, stages + 1):
        seen = features if stage == 1 else torch.cat([answers[0][-1], answers[1][-1], features], 1)
        number = 2 if again and stage > 2 else stage
        both = [run(f"model{number}_{branch}", seen, 5 if stage == 1 else 7, 3) for branch in (1, 2)]
        for answer, maps in zip(answers, both, strict=True):
            answer.append(maps)
    return [torch.stack(answer, 1) for answer in answers]


def fields_first(state, images, field_stages, heat_stages):
    """The journal's network in the words of its layout."""

    def slope(name, x):
        weight = state[f"{name}.Mconv.weight"]
        x = F.conv2d(x, weight, state[f"{name}.Mconv.bias"], padding=weight.shape[-1] // 2)
        return F.prelu(x, state[f"{name}.MPrelu.weight"])

    def stage(name, x):
        for unit in range(1, 6):
            one = slope(f"{name}.Mconv{unit}_0", x)
            two = slope(f"{name}.Mconv{unit}_1", one)
            x = torch.cat([one, two, slope(f"{name}.Mconv{unit}_2", two)], 1)
        return F.conv2d(slope(f"{name}.Mconv6", x), state[f"{name}.Mconv7.weight"], state[f"{name}.Mconv7.bias"])

    x = images
    for n in (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25):
        if n in (5, 10, 19):
            x = F.max_pool2d(x, 2)
        name = f"feature_extractor.{n}"
        x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)
        x = F.prelu(x, state[f"feature_extractor.{n + 1}.weight"]) if n >= 21 else F.relu(x)
    fields, heats = [], []
    for n in range(field_stages):
        fields.append(stage(f"l2_stages.{n}", torch.cat([x, fields[-1]], 1) if n else x))
    for n in range(heat_stages):
        heats.append(stage(f"l1_stages.{n}", torch.cat([x, *heats[-1:], fields[-1]], 1)))
    return [torch.stack(fields, 1), torch.stack(heats, 1)]


NARROW = {
    "trunk": [6, 8, 10, 12], "features": [10, 8], "recipe": "paper", "flip_test": False,
    "two_branch": {"stages": 4, "first": [6, 8], "later": 7, "kernel": 7},
    "paf_first": {"field_stages": 3, "heat_stages": 2, "first": [4, 6], "later": [5, 7]},
}  # fmt: skip


@every_variant
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "model.module."])
def test_official_weights_answer_as_their_layout_says(variant, prefix):
    system, other = (make(variant, COCO17, seed, **NARROW) for seed in (0, 1))
    state = {}
    for n, (name, value) in enumerate(other.network.state_dict().items()):
        noise = torch.randn(value.shape, generator=torch.Generator().manual_seed(n))
        state[name] = noise / max(1, value[0].numel()) ** 0.5 if value.ndim > 1 else 0.1 * noise
    system.load_official({"state_dict": {prefix + name: value for name, value in state.items()}, "epoch": 3})
    images = torch.randn(2, 3, 48, 64)
    system.network.eval()
    with torch.no_grad():
        got = system.network(images)
        if variant == "paf_first":
            wanted = fields_first(state, images, 3, 2)
        else:
            wanted = two_branch(state, images, 4, again=variant == "shared")
    assert got["fields"].shape == (2, wanted[0].shape[1], 38, 6, 8)
    assert got["heats"].shape == (2, wanted[1].shape[1], 19, 6, 8)
    for maps, reference in zip((got["fields"], got["heats"]), wanted, strict=True):
        assert reference.abs().max() > 0.01
        torch.testing.assert_close(maps, reference, rtol=1e-4, atol=1e-5)


def test_other_weights_are_refused_by_name():
    system = make("two_branch", COCO17, **NARROW)
    state = system.network.state_dict()
    del state["model2_1.4.bias"]
    state["model3_2.0.weight"] = state["model3_2.0.weight"][:1]
    with pytest.raises(TrainingError, match=r"missing: model2_1\.4\.bias; wrong shape: model3_2\.0\.weight"):
        system.load_official(state)
    with pytest.raises(TrainingError, match="this one has epoch, optimiser"):
        system.load_official({"optimiser": {}, "epoch": 3})


@every_variant
@pytest.mark.parametrize("skeleton", [LSP14, COCO17], ids=lambda s: s.name)
def test_every_loss_reaches_its_parameters_and_groups_are_the_whole(variant, skeleton):
    system = tiny(variant, skeleton)
    batch = scene(skeleton, [2, 0, 3])
    system.network.train()
    losses = system.loss(system.forward(system.network, batch), batch)
    assert set(losses) == set(system.loss_terms)
    assert all(loss.shape == () and loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert [key for key, p in system.network.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in system.network.parameters())
    grouped = [id(p) for modules in system.groups.values() for module in modules for p in module.parameters()]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in system.network.parameters()}


def test_shared_stages_are_one():
    system = tiny("shared", two_branch={"stages": 5, "first": [12, 16], "later": 12, "kernel": 7}, flip_test=False)
    names = {name.split(".")[0] for name in system.network.state_dict()}
    assert names == {"model0", "model1_1", "model1_2", "model2_1", "model2_2"}
    system.network.eval()
    with torch.no_grad():
        assert system.network(torch.randn(1, 3, 32, 32))["heats"].shape[1] == 5


def test_joints_out_of_reach_and_odd_sizes_are_refused_by_name():
    loose = Skeleton("loose", ("a", "b", "c"), (("a", "b"),), (), (), ("a", "b"), None, None)
    with pytest.raises(ConfigError, match="loose do not reach c: OpenPose puts people together"):
        tiny("two_branch", loose)
    with pytest.raises(ConfigError, match=r"systems\.openpose\.input_size is \(98, 96\).*multiples of 4"):
        tiny("two_branch", input_size=(98, 96))
    short = Skeleton("short", ("a", "b", "c"), (("a", "b"), ("b", "c")), (), (), ("a", "b"), None, None)
    with pytest.raises(ConfigError, match="min_joints is 4, skeleton short has 3 joints: nobody would have enough"):
        tiny("two_branch", short)


# ---------------------------------------------------------------- loss and targets


@every_variant
def test_where_nothing_is_known_the_loss_is_0(variant):
    system = tiny(variant)
    batch = scene(LSP14, [2, 1])
    batch = replace(batch, ignored=torch.ones_like(batch.ignored))
    system.network.train()
    losses = system.loss(system.forward(system.network, batch), batch)
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in system.network.parameters())


def test_the_plain_loss_is_the_papers_and_masks_cut_cells_out():
    system = tiny("two_branch", COCO17, recipe="paper")
    batch = scene(COCO17, [3])
    batch.ignored[:, 4:12, :] = True
    batch.ignored[:, 0, 0] = True
    fields, heats, weight = system.targets(batch)
    assert weight.shape == (1, 1, 24, 24)
    assert weight[0, 0, 5, 0] == 0
    assert weight[0, 0, 0, 0] == 0
    assert weight[0, 0, 0, 1] == 1
    outputs = {"fields": torch.randn(1, 3, 38, 24, 24), "heats": torch.randn(1, 3, 19, 24, 24)}
    losses = system.loss(outputs, batch)
    for name, target in (("fields", fields), ("heats", heats)):
        wanted = sum((weight * (outputs[name][:, s] - target) ** 2).mean() for s in range(3))
        torch.testing.assert_close(losses[name], wanted)
    outputs["heats"][..., 4:12, :] += 100
    torch.testing.assert_close(system.loss(outputs, batch)["heats"], losses["heats"])


def test_what_is_not_labelled_changes_nothing():
    system = tiny("two_branch", COCO17)
    batch = scene(COCO17, [2, 1])
    dirt = replace(batch, keypoints=torch.where(batch.labelled[..., None], batch.keypoints, 17.0))
    for one, other in zip(system.targets(batch), system.targets(dirt), strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()


def test_the_preview_shows_joints_and_the_limbs_between_them():
    system = tiny("two_branch")
    batch = standing(LSP14, [(48.0, 46.0)], stature=80.0)
    preview = system.targets_preview(batch)
    assert preview.shape == (1, 24, 24)
    assert (preview >= 0).all()
    assert (preview <= 1).all()
    cell = lambda place: preview[0, int(place[1] // 4), int(place[0] // 4)]  # noqa: E731
    knee, ankle = (batch.keypoints[0, 0, LSP14.index(name)] for name in ("left_knee", "left_ankle"))
    assert cell(knee) > 0.7
    assert cell((knee + ankle) / 2) > 0.9, "no joint is near"
    assert cell(torch.tensor([6.0, 6.0])) < 1e-6, "nobody is near"


# ---------------------------------------------------------------- decoding


def perfect(system, batch):
    """Outputs that say the targets."""
    fields, heats, _ = system.targets(batch)
    return {"fields": fields[:, None], "heats": heats[:, None]}


def standing(skeleton, centres, stature=70.0):
    """A batch of one image with people who stand at these places."""
    names = [name.removeprefix("left_").removeprefix("right_") for name in skeleton.joints]
    side = np.array([-1 if name.startswith("right") else 1 for name in skeleton.joints])
    shape = np.array([synthetic_place(name) for name in names]) * np.stack([side, np.ones(len(side))], 1)
    people = torch.tensor(np.array(centres)[:, None] + stature * shape, dtype=torch.float32)
    batch = scene(skeleton, [len(centres)])
    inside = ((people > 0) & (people < SIZE)).all(dim=2)
    return replace(batch, keypoints=people[None], labelled=inside[None])


def synthetic_place(name):
    return {
        "nose": (0, -0.42), "neck": (0, -0.3), "shoulder": (0.13, -0.3), "elbow": (0.2, -0.13), "wrist": (0.24, 0.03),
        "hip": (0.1, 0.03), "knee": (0.12, 0.27), "ankle": (0.13, 0.5), "eye": (0.04, -0.46), "ear": (0.1, -0.44),
        "head_top": (0, -0.5),
    }[name]  # fmt: skip


@pytest.mark.parametrize("skeleton", [LSP14, COCO17], ids=lambda s: s.name)
def test_decoding_the_targets_gives_the_people_in_original_pixels(skeleton):
    system = tiny("two_branch", skeleton)
    batch = standing(skeleton, [(24.0, 46.0), (70.0, 50.0)])
    turn = torch.tensor([[2.0, -0.5, 30.0], [0.25, 3.0, -7.0]])
    batch = replace(
        batch, to_original=turn[None], image_ids=torch.tensor([40]), image_sizes=torch.tensor([[240.0, 320.0]])
    )
    people = system.decode(perfect(system, batch), batch)
    assert len(people) == 2
    assert people.image_ids.tolist() == [40, 40]
    assert (people.person_scores > 0.9).all()
    assert (people.person_scores <= 1).all()
    for n in range(2):
        x, y = batch.keypoints[0, n].T.double().numpy()
        wanted = np.stack([2 * x - 0.5 * y + 30, 0.25 * x + 3 * y - 7], axis=1)
        who = np.abs(people.keypoints - wanted).max(axis=2).mean(axis=1).argmin()
        seen = batch.labelled[0, n].numpy()
        np.testing.assert_allclose(people.keypoints[who][seen], wanted[seen], atol=0.05)
        assert np.array_equal(people.scores[who] > 0, seen)
        assert np.array_equal(people.presence[who], people.scores[who])
    assert (people.boxes >= 0).all()
    assert (people.boxes <= [240, 320, 240, 320]).all()
    with torch.no_grad():
        found = system.people(perfect(system, batch))
    assert len(found.scores) == 2
    assert found.keypoints.shape == (2, skeleton.size, 2)


def test_nobody_is_an_empty_answer():
    system = tiny("two_branch", COCO17)
    batch = scene(COCO17, [0, 0])
    people = system.decode(perfect(system, batch), batch)
    assert len(people) == 0
    assert people.keypoints.shape == (0, 17, 2)
    assert people.boxes.shape == (0, 4)
    assert system.people(perfect(system, batch)).keypoints.shape == (0, 17, 2)


def test_a_warning_says_once_that_candidates_were_left_away(capsys):
    rules = load().systems["openpose"].grouping.model_dump()
    system = tiny("two_branch", grouping=rules | {"candidates": 2})
    batch = standing(LSP14, [(24.0, 46.0), (70.0, 50.0)])
    outputs = {name: torch.cat([part, part]) for name, part in perfect(system, batch).items()}
    wrist = LSP14.index("left_wrist")
    outputs["heats"][1, 0, wrist] = 0
    outputs["heats"][1, 0, wrist, 20, [2, 6, 10, 14, 18]] = 0.5
    batch = replace(scene(LSP14, [2, 2]), image_ids=torch.tensor([5, 77]))
    people = system.decode(outputs, batch)
    assert people.image_ids.tolist() == [5, 5, 77, 77]
    said = capsys.readouterr().err
    assert "1 of 2 images have more than 2 candidates of one joint (image id 77 has 5 of left_wrist)" in said
    assert "raise systems.openpose.grouping.candidates" in said
    system.decode(outputs, batch)
    assert capsys.readouterr().err == "", "a video would have a line for every frame"
    tiny("two_branch").decode(outputs, batch)
    assert capsys.readouterr().err == ""


def test_maps_that_are_not_numbers_are_refused():
    system = tiny("two_branch")
    batch = scene(LSP14, [1, 2])
    outputs = perfect(system, batch)
    outputs["fields"][1, 0, 3, 2, 2] = torch.nan
    with pytest.raises(PoseError, match="maps of image 1 of 2 in this batch hold values that are not numbers"):
        system.decode(outputs, batch)
    with pytest.raises(PoseError, match="OpenPose sees whole scenes"):
        system.joints(outputs)


@every_variant
@pytest.mark.parametrize("size", [(3, 2), (8000, 30)])
def test_pictures_smaller_than_a_cell_and_thousands_of_pixels_wide(variant, size):
    system = tiny(variant, COCO17)
    system.network.eval()
    batch = system.prepare(unlabelled([Image.new("RGB", size, (9, 99, 200))], [5], SIZE, COCO17))
    with torch.no_grad():
        people = system.decode(system.forward(system.network, batch), batch)
    assert people.keypoints.shape[1:] == (17, 2)


@every_variant
@pytest.mark.parametrize("skeleton", [LSP14, COCO17], ids=lambda s: s.name)
def test_with_flips_a_mirrored_image_has_mirrored_maps(variant, skeleton):
    system = tiny(variant, skeleton)
    system.network.eval()
    images = torch.randn(1, 3, 48, 32)
    order, signs = system.layout.field_mirror
    with torch.no_grad():
        there, back = system.network(images), system.network(images.flip(3))
        alone = system.network._view(images, 1.0, flip=False)
    mirrored = back["fields"].flip(4)[:, :, order] * torch.from_numpy(signs)[:, None, None]
    torch.testing.assert_close(there["fields"], mirrored, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        there["heats"], back["heats"].flip(4)[:, :, system.layout.joint_mirror], rtol=1e-4, atol=1e-6
    )
    assert not torch.allclose(there["heats"], alone["heats"], atol=1e-4)


def test_several_scales_are_averaged_on_the_images_own_cells():
    system = tiny("two_branch", scales=[0.5, 1.0, 1.5], flip_test=False)
    system.network.eval()
    images = torch.randn(2, 3, 48, 32)
    with torch.no_grad():
        outputs = system.network(images)
        views = [system.network._view(images, scale, flip=False)["heats"] for scale in (0.5, 1.0, 1.5)]
    assert outputs["heats"].shape == (2, 3, 15, 12, 8)
    torch.testing.assert_close(outputs["heats"], sum(views) / 3)
    system.network.train()
    assert system.network(images)["heats"].shape == (2, 3, 15, 12, 8)


# ---------------------------------------------------------------- drawn scenes


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Three scenes of one to three people, as a prepared dataset has them."""
    return write_drawn(tmp_path_factory.mktemp("drawn"), SIZE, range(3))


@every_variant
def test_the_engine_trains_validates_and_keeps_it(variant, drawn, tmp_path):
    weights = {"fields": 1.0, "heats": 1.0}
    recipe = load().systems["openpose"].model_dump()["recipes"]["modern"] | {
        "batch_size": 2,
        "phases": [
            {"name": "stages", "epochs": 1, "train": ["stages"], "losses": weights},
            {"name": "maps", "epochs": 1, "train": ["trunk", "stages"], "losses": weights},
        ],
    }
    system = tiny(variant, recipe="small", recipes={"small": recipe})
    outcome = trained("openpose", system.params, drawn, tmp_path)
    for record in outcome.history:
        for part in ("train", "val"):
            assert {"fields", "heats", "loss"} <= set(record[part])
    restored = restore(tiny(variant, seed=5), outcome.weights)
    seed_rank(load().seed, World(device=torch.device("cpu")))
    first = create("openpose", system.params, LSP14).network.state_dict()
    assert [key for key, p in restored.network.named_parameters() if torch.equal(p, first[key])] == []
    batch = restored.prepare(next(SceneLoader(SceneSplit.open(drawn, "val"), 1).batches(np.arange(3), 3, None, 0, 0)))
    with torch.no_grad():
        assert restored.decode(restored.forward(restored.network, batch), batch).keypoints.shape[1:] == (14, 2)


def learning(variant, **changes):
    """At a size that learns in seconds."""
    sizes = {
        "trunk": [16, 24, 32], "features": [32, 32],
        # Of two stages none would be shared.
        "two_branch": {"stages": 3 if variant == "shared" else 2, "first": [32, 48], "later": 24, "kernel": 5},
        "paf_first": {"field_stages": 2, "heat_stages": 2, "first": [16, 32], "later": [16, 32]},
    }  # fmt: skip
    return tiny(variant, **sizes, **changes)


LESSONS = {"two_branch": (80, 6e-3), "shared": (120, 6e-3), "paf_first": (200, 4e-3)}
"""Steps and rate; stages without batch normalisation want more of them and a lower one."""


@pytest.fixture(scope="module", params=VARIANTS)
def learned(request, drawn):
    """A small network that knows the three scenes by heart, and their batch."""
    torch.set_num_threads(1)
    system = learning(request.param, flip_test=False)
    batch = system.prepare(next(SceneLoader(SceneSplit.open(drawn, "train"), 1).batches(np.arange(3), 3, None, 0, 0)))
    steps, rate = LESSONS[request.param]
    optimiser = torch.optim.AdamW(system.network.parameters(), lr=rate)
    system.network.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10, 2 * (steps - step) / steps)
        losses = system.loss(system.forward(system.network, batch), batch)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(system.network.parameters(), 5.0)
        optimiser.step()
    system.network.eval()
    return system, batch


@pytest.mark.slow
def test_learns_three_drawn_scenes_by_heart(learned, drawn):
    system, batch = learned
    split = SceneSplit.open(drawn, "train")
    with torch.no_grad():
        people = system.decode(system.forward(system.network, batch), batch)
    for row in range(3):
        place = split.people_of(row)
        found = people.select(np.flatnonzero(people.image_ids == row))
        for person in range(place.start, place.stop):
            labelled = split.labelled[person]
            error = np.linalg.norm(found.keypoints - split.keypoints[person], axis=2)
            near = ((error < 6) & (found.scores > 0))[:, labelled].mean(axis=1)
            assert near.max() >= 0.7


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_variant_is_exported_as_it_answers(learned, drawn, tmp_path):
    system, _ = learned
    save_file(system.network.state_dict(), tmp_path / "learned.safetensors")
    rules = system.params.grouping.model_copy(update={"candidates": 16}).model_dump()
    # As evaluated and deployed by default, with the mirrored image's say.
    other = learning(system.params.variant, seed=5, flip_test=True, grouping=rules)
    split, bundle, crop = SceneSplit.open(drawn, "test"), tmp_path / "bundle", CropParams(view="person", size=48)
    params = ExportParams(tolerance_px=0.01, parity_images=3, latency_runs=1)
    report = export("openpose", other, tmp_path / "learned.safetensors", split, crop, bundle, params, threads=1)
    assert set(report.parity_px) == {"onnx", "torch_export"}
    assert max(report.parity_px.values()) <= 0.01
    ours = released(bundle).system
    assert ours.params == other.params
    kept = ours.network.state_dict()
    assert all(torch.equal(tensor, kept[key]) for key, tensor in system.network.state_dict().items())
    deployed = DeployedScene(ours).eval()
    with torch.no_grad():
        people = [len(deployed(torch.from_numpy(image[None]))[0]) for image in inputs(ours, split, np.arange(3))]
    assert min(people) > 0, "where nobody is found, parity says nothing"


class Planted(torch.nn.Module):
    """Perfect maps of the same people whatever the picture shows, fainter where it is darker."""

    def __init__(self, fields, heats):
        super().__init__()
        self.register_buffer("fields", fields)
        self.register_buffer("heats", heats)

    def forward(self, images):
        light = images.mean().clamp(0, 1)
        return {"fields": self.fields * light, "heats": self.heats * light}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("skeleton", [LSP14, COCO17], ids=lambda s: s.name)
def test_exported_graphs_find_who_the_network_finds(skeleton, tmp_path):
    grouping = load().systems["openpose"].grouping.model_copy(update={"candidates": 8})
    system = tiny("two_branch", skeleton, grouping=grouping.model_dump())
    outputs = perfect(system, standing(skeleton, [(24.0, 46.0), (70.0, 50.0), (44.0, 60.0)]))
    outputs["heats"][0, -1, 0, 0, :20:2] = 0.5  # ten candidates of one joint more, for which there is no room
    peaks = system.grouped(outputs)[0].candidates.peaks
    assert peaks.max() == 13
    assert (peaks > 8).sum() == 1
    system.network = Planted(outputs["fields"], outputs["heats"])
    deployed = DeployedScene(system).eval()
    write_programs(deployed, (SIZE, SIZE), tmp_path, deployed.outputs, any_batch=False)
    counts = []
    for level in (0, 150, 255):
        picture = np.full((1, 3, SIZE, SIZE), level, np.uint8)
        with torch.no_grad():
            wanted = deployed(torch.from_numpy(picture))
        counts.append(len(wanted[0]))
        onnx = onnx_network(tmp_path / "model.onnx", 1, deployed.outputs)
        for run in (onnx, exported_network(tmp_path / "model.pt2")):
            (*got, left_away) = run(picture)
            assert left_away == wanted[-1] == (5 if level else 0)
            # People who score alike to the last bits come in any order.
            mine, other = np.argsort(wanted[0][:, 0].numpy()), np.argsort(got[0][:, 0])
            for name, ours, theirs in zip(OUTPUTS, wanted[:-1], got, strict=True):
                np.testing.assert_allclose(theirs[other], ours.numpy()[mine], atol=1e-3, err_msg=name)
    assert counts[0] == 0
    assert counts[2] == 3


@every_variant
def test_restored_weights_answer_alike(variant, tmp_path):
    system, other = tiny(variant, COCO17), tiny(variant, COCO17, seed=3)
    save_file(system.network.state_dict(), tmp_path / "model.safetensors")
    images = torch.randn(2, 3, 32, 32)
    system.network.eval()
    with torch.no_grad():
        wanted, got = system.network(images), restore(other, tmp_path / "model.safetensors").network(images)
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
