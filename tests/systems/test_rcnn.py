"""Person detector and Keypoint R-CNN: any number of joints and people trains, is found again, and is restored."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scene_examples import NOSE, noise_scene, trained, write_drawn

from pose.config_loading import load
from pose.data.scenes import SceneLoader, SceneSplit
from pose.errors import ConfigError, PoseError
from pose.layers.regions import Target, ignored_share, match, sample
from pose.skeleton import COCO17, LSP14
from pose.systems import create, restore
from pose.systems.keypoint_rcnn import KeypointRcnn

TERMS = KeypointRcnn.loss_terms
NAMES = ["person_detector", "keypoint_rcnn"]
SIZE = 96
STEPS = 70
"""After about 50, every person of two scenes is found."""
TINY = {
    "input_size": SIZE, "depth": 18, "pyramid_channels": 32, "box_hidden": 64, "anchors": (12, 24, 40, 64, 96),
    "proposals_train": 60, "proposals_test": 40, "sampled_anchors": 64, "sampled_proposals": 32, "detections": 10,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(name, skeleton=LSP14, **changes):
    whole = load().systems[name]
    head = {"keypoint_channels": [32, 32]} if name == "keypoint_rcnn" else {}
    torch.manual_seed(0)
    return create(name, type(whole).model_validate({**whole.model_dump(), **TINY, **head, **changes}), skeleton)


def scene(skeleton, people, seed=1):
    return noise_scene(skeleton, people, SIZE, seed)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("skeleton", [LSP14, COCO17, NOSE], ids=lambda s: s.name)
def test_any_number_of_joints_reaches_every_parameter(name, skeleton):
    system = tiny(name, skeleton)
    batch = scene(skeleton, [2, 0, 3])
    losses = system.loss(system.forward(system.network, batch), batch)
    assert set(losses) == set(system.loss_terms)
    assert all(loss.shape == () and loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert [key for key, p in system.network.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in system.network.parameters())
    assert system.network.roi_heads.box_predictor.cls_score.weight.grad.any()
    if name == "keypoint_rcnn":
        assert system.network.roi_heads.keypoint_predictor.kps_score_lowres.weight.shape[1] == skeleton.size
        assert system.network.roi_heads.keypoint_head[0].weight.grad.any()


@pytest.mark.parametrize("skeleton", [LSP14, NOSE], ids=lambda s: s.name)
@pytest.mark.parametrize("case", ["nobody", "no labelled joints", "everything ignored"])
def test_where_nothing_is_known_losses_are_0_and_not_nan(skeleton, case):
    system = tiny("keypoint_rcnn", skeleton)
    batch = scene(skeleton, [2, 1] if case == "no labelled joints" else [0, 0])
    if case == "no labelled joints":
        batch = replace(batch, labelled=torch.zeros_like(batch.labelled))
    if case == "everything ignored":
        batch = replace(batch, ignored=torch.ones_like(batch.ignored))
    losses = system.loss(system.forward(system.network, batch), batch)
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["keypoints"] == 0
    if case != "no labelled joints":
        assert losses["box"] == losses["rpn_box"] == 0
    if case == "everything ignored":
        assert losses["objectness"] == losses["classifier"] == 0
    sum(losses.values()).backward()
    # DDP and the engine want a gradient everywhere, if only of zeros.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in system.network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_losses_come_in_evaluation_mode_and_repeat_with_torchs_generator(name):
    system = tiny(name)
    batch = scene(LSP14, [2, 3])
    system.network.eval()
    results = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        with torch.no_grad():
            outputs = system.forward(system.network, batch)
            assert "losses" not in outputs
            results.append({key: float(loss) for key, loss in system.loss(outputs, batch).items()})
    assert results[0] == results[1] != results[2]
    assert set(results[0]) == set(system.loss_terms)


def test_only_labelled_joints_of_people_in_their_slots_count():
    """What lies in empty slots and in joints that are not labelled changes nothing."""
    system = tiny("keypoint_rcnn")
    batch = scene(LSP14, [2, 1])
    dirt = replace(
        batch,
        keypoints=torch.where(batch.labelled[..., None], batch.keypoints, 17.0),
        boxes=torch.where(batch.people[..., None], batch.boxes, torch.tensor([3.0, 3, 50, 50])),
    )
    values = []
    for each in (batch, dirt):
        torch.manual_seed(3)
        system.network.eval()
        values.append({k: v.item() for k, v in system.loss(system.forward(system.network, each), each).items()})
    assert values[0] == values[1]


def test_boxes_are_matched_by_overlap_rescued_and_left_out_of_ignored_regions():
    ignored = torch.zeros(24, 24, dtype=torch.bool)
    ignored[:, 12:] = True
    target = Target(
        torch.tensor([[0.0, 0, 20, 20], [70, 70, 96, 96]]), torch.zeros(2, 1, 2), torch.zeros(2, 1), ignored, 4
    )
    boxes = torch.tensor(
        [
            [0.0, 0, 20, 20],  # the first person
            [0, 0, 20, 12],  # 0.6 of them
            [0, 30, 20, 50],  # background
            [60, 0, 80, 20],  # background, but nothing is known there
            [60, 60, 96, 96],  # nearest to the second person, at 0.52
            [40, 0, 54, 20],  # background, less than half of it ignored
        ]
    )
    person, label = match(boxes, target, 0.3, 0.7, rescue=True)
    assert label.tolist() == [1, -1, 0, -1, 1, 0]
    assert person[[0, 1, 4]].tolist() == [0, 0, 1]
    _, label = match(boxes, target, 0.3, 0.7, rescue=False)
    assert label.tolist() == [1, -1, 0, -1, -1, 0]
    assert ignored_share(boxes, target)[:4].tolist() == [0, 0, 0, 1]
    nobody = replace(target, boxes=target.boxes[:0])
    assert match(boxes, nobody, 0.5, 0.5, rescue=True)[1].tolist() == [0, 0, 0, -1, -1, 0]


def test_a_person_that_no_box_touches_rescues_none():
    target = Target(torch.tensor([[50.0, 50, 60, 60]]), torch.zeros(1, 1, 2), torch.zeros(1, 1), torch.zeros(9, 9), 4)
    assert match(torch.tensor([[0.0, 0, 9, 9]]), target, 0.3, 0.7, rescue=True)[1].tolist() == [0]


def test_samples_are_of_the_share_asked_for_and_filled_with_background():
    label = torch.tensor([1] * 10 + [0] * 30 + [-1] * 5)
    people, background = sample(label, 16, 0.25)
    assert (len(people), len(background)) == (4, 12)
    assert (label[people] == 1).all()
    assert (label[background] == 0).all()
    people, background = sample(label[8:], 16, 0.5)
    assert (len(people), len(background)) == (2, 14)


@pytest.mark.parametrize("name", NAMES)
def test_restored_weights_answer_alike(name, tmp_path):
    system, other = tiny(name), tiny(name)
    torch.nn.init.normal_(other.network.backbone.body.conv1.weight)
    save_file(system.network.state_dict(), tmp_path / "model.safetensors")
    batch = scene(LSP14, [1, 2])
    restored = restore(other, tmp_path / "model.safetensors")
    system.network.eval()
    with torch.no_grad():
        wanted, got = (s.people(s.forward(s.network, batch)) for s in (system, restored))
    assert len(wanted.scores) > 0
    for name in ("image", "boxes", "scores", "keypoints", "confidences"):
        assert torch.equal(getattr(wanted, name), getattr(got, name))


@pytest.mark.parametrize("name", NAMES)
def test_decoded_people_are_in_original_pixels_within_their_images(name):
    system = tiny(name)
    system.network.eval()
    batch = scene(LSP14, [1, 2])
    turn = torch.tensor([[2.0, 0, -5.0], [0, 2.0, 3.0]]).repeat(2, 1, 1)
    batch = replace(
        batch, to_original=turn, image_ids=torch.tensor([40, 7]), image_sizes=torch.tensor([[150.0, 190]]).repeat(2, 1)
    )
    with torch.no_grad():
        outputs = system.forward(system.network, batch)
        found, people = system.people(outputs), system.decode(outputs, batch)
    assert len(people) == len(found.scores) > 2
    assert people.image_ids.tolist() == [[40, 7][i] for i in found.image]
    assert np.array_equal(people.person_scores, found.scores.numpy())
    assert (people.boxes >= 0).all()
    assert (people.boxes <= [150, 190, 150, 190]).all()
    shift = np.array([-5, 3, -5, 3])
    inside = 2 * found.boxes.numpy() + shift
    np.testing.assert_allclose(people.boxes, inside.clip(0, [150, 190, 150, 190]), atol=1e-4)
    if name == "keypoint_rcnn":
        np.testing.assert_allclose(people.keypoints, 2 * found.keypoints.numpy() + shift[:2], atol=1e-4)
        assert (people.scores > 0).all()
        assert (people.scores <= 1).all()
    else:
        assert not people.scores.any()


@pytest.mark.parametrize("name", NAMES)
def test_nobody_found_is_an_empty_answer(name):
    system = tiny(name, score_floor=1.0)
    system.network.eval()
    batch = scene(LSP14, [1, 2])
    with torch.no_grad():
        people = system.decode(system.forward(system.network, batch), batch)
    assert len(people) == 0
    assert people.keypoints.shape == (0, 14, 2)
    assert people.boxes.shape == (0, 4)


def test_canvases_that_levels_do_not_cover_are_refused_by_key():
    with pytest.raises(ValueError, match=r"input_size\n.*is 100x96 px; expected sides that are multiples of 32"):
        tiny("keypoint_rcnn", input_size=(100, 96))
    with pytest.raises(ConfigError, match=r"phases\[0\]\.losses names 'keypoints'; person_detector has objectness"):
        tiny("person_detector", recipes=load().systems["keypoint_rcnn"].model_dump()["recipes"])


def test_one_persons_joints_are_refused_by_name():
    with pytest.raises(PoseError, match="KeypointRcnn sees whole scenes"):
        tiny("keypoint_rcnn").joints({})


@pytest.fixture
def one_rank(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_gradients_under_ddp_are_those_without_also_after_scenes_without_people(one_rank):
    """DDP refuses a second step after one that left a parameter without a gradient."""
    alone, system = tiny("keypoint_rcnn"), tiny("keypoint_rcnn")
    wrapped = torch.nn.parallel.DistributedDataParallel(system.network)
    for people in ([0, 0], [2, 1]):
        batch, gradients = scene(LSP14, people), []
        for each, network in ((alone, alone.network), (system, wrapped)):
            torch.manual_seed(11)
            each.network.zero_grad()
            sum(each.loss(each.forward(network, batch), batch).values()).backward()
            gradients.append([p.grad for p in each.network.parameters()])
        for wanted, got in zip(*gradients, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------- drawn scenes


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Three scenes of one to three people, as a prepared dataset has them."""
    return write_drawn(tmp_path_factory.mktemp("drawn"), SIZE, range(3))


def test_the_engine_trains_validates_and_keeps_it(drawn, tmp_path):
    recipe = {
        "batch_size": 2,
        "ema_decay": 0.9,
        "optimiser": {"kind": "adamw", "lr": 0.0005},
        "schedule": {"kind": "constant"},
        "augment": {"scale": 0.1, "rotate": 10, "flip": 0.5, "colour": 0.2},
        "phases": [
            {"name": "heads", "epochs": 1, "train": ["proposals", "heads"], "losses": dict.fromkeys(TERMS, 1.0)},
            {"name": "all", "epochs": 1, "train": ["trunk", "proposals", "heads"], "losses": dict.fromkeys(TERMS, 1.0)},
        ],
    }
    system = tiny("keypoint_rcnn", recipe="small", recipes={"small": recipe})
    outcome = trained("keypoint_rcnn", system.params, drawn, tmp_path)
    for record in outcome.history:
        for part in ("train", "val"):
            assert set(TERMS) < set(record[part])
    assert outcome.metric == "val/loss"
    restored = restore(tiny("keypoint_rcnn"), outcome.weights)
    batch = restored.prepare(next(SceneLoader(SceneSplit.open(drawn, "val"), 1).batches(np.arange(3), 3, None, 0, 0)))
    with torch.no_grad():
        assert restored.decode(restored.forward(restored.network, batch), batch).keypoints.shape[1:] == (14, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_finds_everyone_in_two_drawn_scenes(drawn, name):
    drawn = SceneSplit.open(drawn, "train")
    system = tiny(name, pyramid_channels=64)
    batch = system.prepare(next(SceneLoader(drawn, 1).batches(np.arange(2), 2, None, 0, 0)))
    optimiser = torch.optim.AdamW(system.network.parameters(), lr=1e-3)
    system.network.train()
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1, 2 * (STEPS - step) / STEPS)
        losses = system.loss(system.forward(system.network, batch), batch)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(system.network.parameters(), 5.0)
        optimiser.step()
    system.network.eval()
    with torch.no_grad():
        people = system.decode(system.forward(system.network, batch), batch)
    for row in range(2):
        place = drawn.people_of(row)
        found = people.select((people.image_ids == row) & (people.person_scores > 0.5))
        assert len(found) == place.stop - place.start
        for person in range(place.start, place.stop):
            apart = np.abs(found.boxes - drawn.boxes[person]).max(axis=1)
            assert apart.min() < 4
            if name == "keypoint_rcnn":
                error = np.linalg.norm(found.keypoints[apart.argmin()] - drawn.keypoints[person], axis=1)
                assert np.median(error[drawn.labelled[person]]) < 2
                assert (error[drawn.labelled[person]] < 6).mean() >= 0.9
