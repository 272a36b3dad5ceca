"""KAPAO: the releases' layout, any skeleton, targets that decode to themselves, and people learned by heart."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from scene_examples import NOSE, noise_scene, trained, write_drawn

from pose.config_loading import load
from pose.data.scenes import SceneLoader, SceneSplit, unlabelled
from pose.errors import ConfigError, PoseError, TrainingError
from pose.layers.kapao_loss import assign, objects_of
from pose.layers.pickled_tensors import read_state
from pose.layers.yolo import STRIDES
from pose.skeleton import COCO17, LSP14
from pose.systems import create, restore
from pose.systems.base import parameter_count
from pose.systems.kapao import Kapao

TERMS = Kapao.loss_terms
SIZE = 128
TINY = {"input_size": SIZE, "width": 0.125, "recipe": "modern"}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(skeleton=LSP14, **changes):
    whole = load().systems["kapao"]
    torch.manual_seed(0)
    return create("kapao", type(whole).model_validate({**whole.model_dump(), **TINY, **changes}), skeleton)


def scene(skeleton, people, seed=1):
    return noise_scene(skeleton, people, SIZE, seed)


# ---------------------------------------------------------------- the network


@pytest.mark.parametrize(
    ("depth", "width", "parameters", "tensors"),
    [(0.33, 0.5, 12_559_980, 472), (0.67, 0.75, 35_755_404, 652), (1.0, 1.0, 77_047_852, 832)],
)
def test_small_medium_and_large_have_the_releases_sizes(depth, width, parameters, tensors):
    with torch.device("meta"):
        system = tiny(COCO17, depth=depth, width=width)
    assert parameter_count(system.network) == parameters
    assert len(system.network.state_dict()) == tensors


def conv(state, key, x, stride=1):
    """Convolution, normalisation and SiLU from their definitions, with the releases' names."""
    weight = state[f"{key}.conv.weight"]
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
    mean, var, gain, bias = (
        state[f"{key}.bn.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
    )
    x = (x - mean) / torch.sqrt(var + 0.001) * gain + bias
    return x * torch.sigmoid(x)


def c3(state, key, x, shortcut):
    y, count = conv(state, f"{key}.cv1", x), sum(k.startswith(f"{key}.m.") and k.endswith("cv1.bn.bias") for k in state)
    for i in range(count):
        z = conv(state, f"{key}.m.{i}.cv2", conv(state, f"{key}.m.{i}.cv1", y))
        y = y + z if shortcut else z
    return conv(state, f"{key}.cv3", torch.cat([y, conv(state, f"{key}.cv2", x)], dim=1))


def plain_forward(state, x):
    """The raw outputs of the four heads for colours in [0, 1], written down layer by layer."""

    def m(i):
        return f"model.{i}"

    def down(i, x):
        return conv(state, m(i), x, stride=2)

    def doubled(x):
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], dim=1)
    x = c3(state, m(2), down(1, conv(state, "model.0.conv", x)), True)
    p3 = c3(state, m(4), down(3, x), True)
    p4 = c3(state, m(6), down(5, p3), True)
    p5 = c3(state, m(8), down(7, p4), True)
    x = conv(state, "model.10.cv1", down(9, p5))
    x = torch.cat([x, *(F.max_pool2d(x, k, 1, k // 2) for k in (3, 5, 7))], dim=1)
    x = c3(state, m(11), conv(state, "model.10.cv2", x), False)
    l12 = conv(state, m(12), x)
    l16 = conv(state, m(16), c3(state, m(15), torch.cat([doubled(l12), p5], 1), False))
    l20 = conv(state, m(20), c3(state, m(19), torch.cat([doubled(l16), p4], 1), False))
    l23 = c3(state, m(23), torch.cat([doubled(l20), p3], 1), False)
    l26 = c3(state, m(26), torch.cat([down(24, l23), l20], 1), False)
    l29 = c3(state, m(29), torch.cat([down(27, l26), l16], 1), False)
    l32 = c3(state, m(32), torch.cat([down(30, l29), l12], 1), False)
    return [
        F.conv2d(x, state[f"model.33.m.{i}.weight"], state[f"model.33.m.{i}.bias"])
        for i, x in enumerate((l23, l26, l29, l32))
    ]


def official(skeleton=COCO17, **changes):
    """A seeded state_dict in the releases' layout, whose statistics are not the initial ones."""
    g = torch.Generator().manual_seed(5)
    state = {}
    for key, tensor in tiny(skeleton, **changes).network.state_dict().items():
        if key.endswith(("num_batches_tracked", "anchors", "anchor_grid")):
            state[key] = tensor
        elif tensor.ndim == 4:
            state[key] = torch.randn(tensor.shape, generator=g) * (1.6 / tensor[0].numel()) ** 0.5
        else:
            state[key] = torch.rand(tensor.shape, generator=g) * 0.4 + (0.8 if key.endswith("var") else 0.1)
    return state


def test_seeded_release_answers_as_a_plain_restatement_does():
    """KAPAO-S itself; images as this project normalises them, the restatement in colours from 0 to 1."""
    state = official(width=0.5)
    system = tiny(COCO17, width=0.5)
    system.load_official({"epoch": 3, "model": {key: tensor.double() for key, tensor in state.items()}})
    colours = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(2))
    normalise = system.yolo.normalise
    system.network.eval()
    with torch.no_grad():
        outputs = system.network((255 * colours - normalise.mean) * normalise.inverse_std)
        wanted = plain_forward(state, colours)
    for raw, level in zip(outputs["levels"], wanted, strict=True):
        assert level.std() > 0.1
        got = raw.permute(0, 1, 4, 2, 3).flatten(1, 2)
        torch.testing.assert_close(got, level, rtol=1e-4, atol=1e-4)


def test_objects_are_decoded_as_the_paper_says():
    system = tiny(width=0.125)
    g = torch.Generator().manual_seed(0)
    outputs = 5 + 15 + 28
    levels = [torch.randn(1, 3, SIZE // s, SIZE // s, outputs, generator=g) for s in STRIDES]
    objects = system.yolo.detect.objects(levels)[0]
    anchors = np.array(system.params.anchors) * SIZE / 1280
    n = 0
    for level, stride in enumerate(STRIDES):
        for a in range(3):
            for row in range(SIZE // stride):
                for column in range(SIZE // stride):
                    s = levels[level][0, a, row, column].sigmoid().tolist()
                    wanted = [(2 * s[0] - 0.5 + column) * stride, (2 * s[1] - 0.5 + row) * stride]
                    wanted += [(2 * s[2]) ** 2 * anchors[level, a, 0], (2 * s[3]) ** 2 * anchors[level, a, 1]]
                    wanted += s[4:20]
                    for k in range(14):
                        wanted.append((4 * s[20 + 2 * k] - 2) * anchors[level, a, 0] + column * stride)
                        wanted.append((4 * s[21 + 2 * k] - 2) * anchors[level, a, 1] + row * stride)
                    if n % 7 == 0:
                        assert objects[n].tolist() == pytest.approx(wanted, abs=1e-3)
                    n += 1
    assert n == len(objects)


def test_official_weights_of_other_sizes_and_layouts_are_refused():
    state = official(COCO17)
    with pytest.raises(TrainingError, match=r"wrong shape: model\.33\.m\.0\.weight is \(171,"):
        tiny(LSP14).load_official(state)
    with pytest.raises(TrainingError, match=r"missing: model\.0\.conv\.conv\.weight"):
        tiny(COCO17).load_official({f"module.{key}": tensor for key, tensor in state.items()})


def test_training_begins_with_a_detector_of_other_classes():
    """As YOLOv5-P6's: 80 classes, no joints, anchors of its own; in half precision, under a name."""
    state = official(COCO17)
    for level in range(4):
        key = f"model.33.m.{level}"
        state[f"{key}.weight"], state[f"{key}.bias"] = state[f"{key}.weight"][:1].repeat(255, 1, 1, 1), torch.ones(255)
    state["model.33.anchors"] = state["model.33.anchors"] + 1
    system = tiny(COCO17)
    fresh = {key: tensor.clone() for key, tensor in system.network.state_dict().items()}
    system.begin_with({"model": {key: tensor.half() for key, tensor in state.items()}})
    for key, tensor in system.network.state_dict().items():
        wanted = fresh[key] if key.startswith("model.33.") else state[key].half().to(tensor.dtype)
        assert torch.equal(tensor, wanted), key
    with pytest.raises(TrainingError, match=r"missing: model\.0\.conv\.conv\.weight"):
        system.begin_with({key: tensor for key, tensor in state.items() if key != "model.0.conv.conv.weight"})


def test_heads_that_begin_anew_have_to_be_trained():
    params = tiny(LSP14).params
    block = params.model_dump() | {"initial": "yolov5s6.pt"}
    for recipe in block["recipes"].values():
        recipe["phases"] = [phase | {"epochs": 0} for phase in recipe["phases"]]
    system = create("kapao", type(params).model_validate(block), LSP14)
    with pytest.raises(ConfigError, match=r"heads have other outputs, new ones would stay untrained"):
        system.begin_with(official(COCO17))


def test_a_checkpoint_that_pickles_the_module_is_taken(tmp_path):
    """In half precision, without step counters, as the releases are."""
    system = tiny(COCO17)
    torch.nn.init.normal_(system.network.model[0].conv.conv.weight)
    path = tmp_path / "kapao.pt"
    torch.save({"epoch": -1, "ema": None, "model": system.network.half()}, path)
    other = tiny(COCO17)
    other.load_official(read_state(path))
    for key, tensor in other.network.state_dict().items():
        assert torch.equal(tensor, system.network.state_dict()[key].to(tensor.dtype)), key
    assert other.network.model[0].conv.conv.weight.dtype == torch.float32


# ---------------------------------------------------------------- any skeleton, any scene


@pytest.mark.parametrize("skeleton", [LSP14, COCO17, NOSE], ids=lambda s: s.name)
def test_any_number_of_joints_reaches_every_parameter(skeleton):
    system = tiny(skeleton)
    batch = scene(skeleton, [2, 0, 3])
    losses = system.loss(system.forward(system.network, batch), batch)
    assert set(losses) == set(TERMS)
    assert all(loss.shape == () and loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert [key for key, p in system.network.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad.isfinite().all() for p in system.network.parameters())
    grouped = [id(p) for modules in system.groups.values() for module in modules for p in module.parameters()]
    assert len(grouped) == len(set(grouped)) == len(list(system.network.parameters()))


@pytest.mark.parametrize("case", ["nobody", "no labelled joints", "everything ignored"])
def test_where_nothing_is_known_losses_are_0_and_not_nan(case):
    system = tiny()
    batch = scene(LSP14, [2, 1] if case == "no labelled joints" else [0, 0])
    if case == "no labelled joints":
        batch = replace(batch, labelled=torch.zeros_like(batch.labelled))
    if case == "everything ignored":
        batch = replace(batch, ignored=torch.ones_like(batch.ignored))
    losses = system.loss(system.forward(system.network, batch), batch)
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["keypoints"] == 0
    assert (losses["box"] > 0) == (case == "no labelled joints")
    assert (losses["objectness"] > 0) == (case != "everything ignored")
    sum(losses.values()).backward()
    # DDP and the engine want a gradient everywhere, if only of zeros.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in system.network.parameters())


def inverse_sigmoid(share):
    return math.log(share / (1 - share))


def perfect(system, batch):
    """Raw outputs that say of every assigned output's object exactly what is true."""
    joints = system.skeleton.size
    levels = [torch.full((len(batch), 3, SIZE // s, SIZE // s, 6 + 3 * joints), -9.0) for s in STRIDES]
    objects = objects_of(batch, 0.05 * SIZE)
    for level, stride in enumerate(STRIDES):
        anchors = system.yolo.detect.anchors[level]
        boxes = objects.boxes / stride
        found = assign(boxes, anchors, levels[level].shape[2:4], system.params.match_ratio)
        for n, a, row, column in zip(found.object, found.anchor, found.row, found.column, strict=True):
            x, y, w, h = boxes[n].tolist()
            aw, ah = anchors[a].tolist()
            raw = levels[level][objects.image[n], a, row, column]
            wanted = [(x - column + 0.5) / 2, (y - row + 0.5) / 2, math.sqrt(w / aw) / 2, math.sqrt(h / ah) / 2]
            kind = int(objects.kind[n])
            # The closer the anchor the surer; a joint that is twice an anchor away cannot be said.
            sure = 0.98 - 0.05 * max(w / aw, aw / w, h / ah, ah / h)
            raw[:] = -9.0
            raw[:4] = torch.tensor([inverse_sigmoid(float(value)) for value in wanted])
            raw[4], raw[5 + kind] = inverse_sigmoid(sure), 9.0
            for k in range(joints):
                if objects.labelled[n, k]:
                    dx, dy = (objects.keypoints[n, k] / stride - torch.stack([column, row])).tolist()
                    share = [min(max((d / side + 2) / 4, 1e-4), 1 - 1e-4) for d, side in ((dx, aw), (dy, ah))]
                    raw[6 + joints + 2 * k : 8 + joints + 2 * k] = torch.tensor([inverse_sigmoid(s) for s in share])
    return levels


@pytest.mark.parametrize("seed", range(4))
def test_targets_decode_to_the_people_they_are_made_of(seed):
    system = tiny()
    batch = scene(LSP14, [1, 0, 2], seed)
    # Apart, so that nobody is suppressed for somebody else.
    shift = torch.tensor([[0.0, 0], [62, 62]])[None, :, None]
    low = batch.boxes[..., :2] * 0.1
    size = (batch.boxes[..., 2:] - batch.boxes[..., :2]).clamp(min=20)
    batch = replace(
        batch,
        keypoints=(batch.keypoints - batch.boxes[..., None, :2]) + low[..., None, :] + shift,
        boxes=torch.cat([low + shift[:, :, 0], low + size + shift[:, :, 0]], dim=2) * batch.people[..., None],
    )
    levels = perfect(system, batch)
    system.network.eval()
    people = system.decode({"levels": levels, "objects": system.yolo.detect.objects(levels)}, batch)
    sure = people.select(people.person_scores > 0.3)
    assert sure.image_ids.tolist() == [0, 2, 2]
    for n in range(3):
        image = sure.image_ids[n]
        slot = int((batch.boxes[image] - torch.from_numpy(sure.boxes[n])).abs().amax(dim=1).argmin())
        np.testing.assert_allclose(sure.boxes[n], batch.boxes[image, slot], atol=2e-3)
        known = batch.labelled[image, slot].numpy()
        np.testing.assert_allclose(sure.keypoints[n][known], batch.keypoints[image, slot].numpy()[known], atol=2e-3)


def test_outputs_that_say_the_truth_cost_next_to_nothing():
    """A large box and one joint share no output; where several objects do, not all of them can be said."""
    system = tiny(NOSE)
    batch = scene(NOSE, [1, 1])
    box = torch.tensor([30.0, 30, 90, 90]).expand(2, 1, 4)
    batch = replace(
        batch, boxes=box, keypoints=torch.full((2, 1, 1, 2), 41.0), labelled=torch.ones(2, 1, 1, dtype=torch.bool)
    )
    levels = perfect(system, batch)
    right = system.loss({"levels": levels}, batch)
    wrong = system.loss({"levels": [torch.zeros_like(raw) for raw in levels]}, batch)
    for name in ("box", "keypoints", "classes"):
        assert right[name] < 1e-3 * wrong[name]
    # The cells are not quite sure.
    assert right["objectness"] < 0.02 * wrong["objectness"]


def test_decoded_people_are_in_original_pixels():
    system = tiny()
    system.network.eval()
    batch = scene(LSP14, [1, 2])
    turn = torch.tensor([[2.0, 0, -5.0], [0, 2.0, 3.0]]).repeat(2, 1, 1)
    moved = replace(batch, to_original=turn, image_ids=torch.tensor([40, 7]), image_sizes=torch.full((2, 2), 300.0))
    levels = perfect(system, batch)
    outputs = {"levels": levels, "objects": system.yolo.detect.objects(levels)}
    found, people = system.people(outputs), system.decode(outputs, moved)
    assert len(people) == len(found.scores) > 2
    assert people.image_ids.tolist() == [[40, 7][i] for i in found.image]
    np.testing.assert_allclose(people.keypoints, 2 * found.keypoints.numpy() + [-5, 3], atol=1e-4)
    np.testing.assert_allclose(people.boxes, (2 * found.boxes.numpy() + [-5, 3, -5, 3]).clip(0, 300), atol=1e-4)
    assert np.array_equal(people.person_scores, found.scores.numpy())
    assert ((people.scores > 0) & (people.scores <= 1)).all()


@pytest.mark.parametrize("size", [(3, 2), (40, 7), (900, 60)])
def test_pictures_smaller_than_a_cell_or_very_wide_are_answered(size):
    system = tiny()
    system.network.eval()
    batch = system.prepare(unlabelled([Image.new("RGB", size, (90, 120, 30))], [5], SIZE, LSP14))
    with torch.no_grad():
        people = system.decode(system.forward(system.network, batch), batch)
    assert people.keypoints.shape[1:] == (14, 2)
    assert (people.boxes[:, 2:] <= size).all()


def test_outputs_that_are_no_numbers_are_an_error_that_names_the_image():
    system = tiny()
    system.network.eval()
    batch = replace(scene(LSP14, [1, 1]), image_ids=torch.tensor([40, 7]))
    with torch.no_grad():
        outputs = system.forward(system.network, batch)
    outputs["objects"][1, 3, 2] = torch.nan
    with pytest.raises(PoseError, match=r"outputs for image ids 7 are not all finite numbers"):
        system.decode(outputs, batch)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"input_size": (100, 128)}, r"100x128 px; expected sides that are multiples of 64"),
        ({"anchors": [[[1, 2]] * 3] * 3}, r"anchors are \[3, 3, 3\], expected four levels of three"),
        ({"test_scales": [1.0, 0.8]}, r"2 test_scales have 1 test_flips"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        tiny(**change)


def test_one_persons_joints_are_refused_by_name():
    with pytest.raises(PoseError, match="Kapao sees whole scenes"):
        tiny().joints({})


def test_restored_weights_answer_alike(tmp_path):
    system, other = tiny(), tiny()
    torch.nn.init.normal_(other.network.model[0].conv.conv.weight)
    save_file(system.network.state_dict(), tmp_path / "model.safetensors")
    images = scene(LSP14, [1]).images
    restored = restore(other, tmp_path / "model.safetensors")
    system.network.eval()
    with torch.no_grad():
        assert torch.equal(system.network(images)["objects"], restored.network(images)["objects"])


def test_preview_has_squares_of_joints_in_faint_boxes_of_people():
    """In cells of 4 px; keypoint objects have sides of 6.4 px. A person without a joint is an object too."""
    batch = scene(LSP14, [1, 1])
    labelled = torch.zeros_like(batch.labelled)
    labelled[0, 0, 3] = True
    batch = replace(
        batch,
        boxes=torch.tensor([[[20.0, 40, 60, 110]], [[-8, 100, 30, 140]]]),
        keypoints=torch.where(labelled[..., None], torch.tensor([70.0, 54.0]), torch.nan),
        labelled=labelled,
    )
    wanted = torch.zeros(2, SIZE // 4, SIZE // 4)
    wanted[0, 10:28, 5:15] = 0.3
    wanted[0, 12:15, 16:19] = 1.0
    wanted[1, 25:, :8] = 0.3
    assert torch.equal(tiny().targets_preview(batch), wanted)


# ---------------------------------------------------------------- views of an image


def test_a_mirrored_image_gives_mirrored_people():
    """What a flip finds in an image is what the plain network finds in the flipped image, mirrored back."""
    plain, flipped = tiny(), tiny(test_scales=[1.0], test_flips=[True])
    flipped.network.load_state_dict(plain.network.state_dict())
    images = scene(LSP14, [1]).images
    plain.network.eval(), flipped.network.eval()
    with torch.no_grad():
        wanted = plain.network(images.flip(-1))["objects"]
        got = flipped.network(images)["objects"]
    torch.testing.assert_close(got[..., 0], SIZE - wanted[..., 0])
    torch.testing.assert_close(got[..., 1:6], wanted[..., 1:6])
    for k, other in enumerate(LSP14.mirror.tolist()):
        torch.testing.assert_close(got[..., 6 + k], wanted[..., 6 + other])
        torch.testing.assert_close(got[..., 20 + 2 * k], SIZE - wanted[..., 20 + 2 * other])
        torch.testing.assert_close(got[..., 21 + 2 * k], wanted[..., 21 + 2 * other])


def test_scaled_views_are_in_pixels_of_the_image_and_taken_together():
    plain, several = tiny(), tiny(test_scales=[0.8, 1.0, 1.5], test_flips=[False, True, False])
    images = scene(LSP14, [1]).images
    plain.network.eval(), several.network.eval()
    assert several.params.flip_test
    assert not plain.params.flip_test
    with torch.no_grad():
        one, all_of_them = plain.network(images), several.network(images)
        larger = F.interpolate(images, (192, 192), mode="bilinear", align_corners=False)
        wanted = plain.network(larger)["objects"]
    last = all_of_them["objects"][:, -wanted.shape[1] :]
    torch.testing.assert_close(last[..., :4] * 1.5, wanted[..., :4], rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(last[..., 4:20], wanted[..., 4:20], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(last[..., 20:] * 1.5, wanted[..., 20:], rtol=1e-3, atol=1e-2)
    # 103 px and the rest up to 128, 128 px, 192 px.
    cells = [sum(3 * (side // s) ** 2 for s in STRIDES) for side in (128, 128, 192)]
    assert all_of_them["objects"].shape[1] == sum(cells)
    # The loss looks at the image alone, as it is.
    assert all(torch.equal(a, b) for a, b in zip(one["levels"], all_of_them["levels"], strict=True))


def test_training_looks_at_the_picture_once_whatever_is_trained():
    """The engine sets the trained parts to training, never the network as a whole."""
    system = tiny(test_scales=[1.0, 1.5], test_flips=[False, True])
    system.network.eval()
    images = scene(LSP14, [1]).images
    assert set(system.network(images)) == {"levels", "objects"}
    for part in system.groups["heads"]:
        part.train()
    assert set(system.network(images)) == {"levels"}


# ---------------------------------------------------------------- drawn scenes


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Three scenes of one to three people, as a prepared dataset has them."""
    return write_drawn(tmp_path_factory.mktemp("drawn"), SIZE, range(3))


def test_the_engine_trains_validates_and_keeps_it(drawn, tmp_path):
    recipe = {
        "mosaic": 0.5,
        "batch_size": 3,
        "ema_decay": 0.9,
        "optimiser": {"kind": "adamw", "lr": 0.0005},
        "schedule": {"kind": "constant"},
        "augment": {"scale": 0.1, "rotate": 10, "flip": 0.5, "colour": 0.2},
        "phases": [
            {"name": "heads", "epochs": 1, "train": ["neck", "heads"], "losses": dict.fromkeys(TERMS, 1.0)},
            {"name": "all", "epochs": 1, "train": ["trunk", "neck", "heads"], "losses": dict.fromkeys(TERMS, 1.0)},
        ],
    }
    system = tiny(recipe="small", recipes={"small": recipe})
    outcome = trained("kapao", system.params, drawn, tmp_path)
    for record in outcome.history:
        for part in ("train", "val"):
            assert set(TERMS) < set(record[part])
    restored = restore(tiny(), outcome.weights)
    batch = restored.prepare(next(SceneLoader(SceneSplit.open(drawn, "val"), 1).batches(np.arange(3), 3, None, 0, 0)))
    with torch.no_grad():
        assert restored.decode(restored.forward(restored.network, batch), batch).keypoints.shape[1:] == (14, 2)


@pytest.mark.slow
def test_finds_everyone_in_two_drawn_scenes(drawn):
    """With joints found at stride 8 and people at 16 and 32, in which so small a canvas has enough cells."""
    anchors = [
        [[5, 5], [8, 8], [12, 12]], [[24, 40], [40, 60], [60, 40]],
        [[60, 90], [80, 110], [100, 70]], [[200, 300], [300, 300], [300, 200]],
    ]  # fmt: skip
    drawn, steps, rate = SceneSplit.open(drawn, "train"), 280, 0.004
    system = tiny(anchors=anchors, anchor_side=SIZE)
    batch = system.prepare(next(SceneLoader(drawn, 1).batches(np.arange(2), 2, None, 0, 0)))
    optimiser = torch.optim.AdamW(system.network.parameters(), lr=rate)
    weights = {"box": 1.0, "objectness": 60.0, "classes": 6.0, "keypoints": 5.0}
    system.network.train()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10, 2 * (steps - step) / steps)
        losses = system.loss(system.forward(system.network, batch), batch)
        optimiser.zero_grad()
        sum(weight * losses[name] for name, weight in weights.items()).backward()
        torch.nn.utils.clip_grad_norm_(system.network.parameters(), 10.0)
        optimiser.step()
    system.network.eval()
    with torch.no_grad():
        people = system.decode(system.forward(system.network, batch), batch)
    for row in range(2):
        place = drawn.people_of(row)
        sure = people.select((people.image_ids == row) & (people.person_scores > 0.5))
        for person in range(place.start, place.stop):
            apart = np.abs(sure.boxes - drawn.boxes[person]).max(axis=1)
            assert apart.min() < 16
            error = np.linalg.norm(sure.keypoints[apart.argmin()] - drawn.keypoints[person], axis=1)
            error = error[drawn.labelled[person]]
            assert np.median(error) < 1.5
            assert (error < 6).mean() >= 0.8
