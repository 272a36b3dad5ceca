"""DeepCut: perfect maps give back the people exactly, its parts agree with loops, it learns, is kept and exported."""

import io
import json
import logging
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scene_examples import NOSE, prepared, trained, write_drawn
from scipy.optimize import minimize

from pose import fitting
from pose.config import CropParams, ExportParams
from pose.config_loading import load
from pose.data import scenes
from pose.data.scenes import SceneLoader, SceneSplit
from pose.data.shards import DatasetInfo
from pose.decoding import partition_graph
from pose.decoding.candidates import highest_around
from pose.decoding.partition import Problem
from pose.decoding.partition_search import local_search
from pose.errors import ConfigError, PoseError, TrainingError
from pose.export import export
from pose.found import Found
from pose.inference import weights
from pose.inference.scene_model import SceneModel
from pose.layers import pair_terms, part_detector
from pose.layers.pair_terms import OffsetStatistics, PairTerms
from pose.skeleton import COCO17, LSP14, Skeleton
from pose.systems import create, restore
from pose.systems.base import parameter_count
from pose.training import TrainingSpec

SIZE = 96
CELLS = SIZE // part_detector.STRIDE
TINY = {"input_size": SIZE, "depth": 18, "width": 8}
STEPS = 45
"""After about 40, every person of two scenes is found."""
APART = Skeleton("apart", ("a", "b", "c", "d"), (("a", "b"), ("c", "d")), (), (), ("a", "b"), None, None)

# pytest listens to every logger, which turns on torch's structured trace of each step of an export.
logging.getLogger("torch.__trace").disabled = True


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny(skeleton=LSP14, **changes):
    whole = load().systems["deepcut"]
    torch.manual_seed(0)
    return create("deepcut", type(whole).model_validate({**whole.model_dump(), **TINY, **changes}), skeleton)


def scene(skeleton, people, seed=1, missing=0.0):
    """A prepared batch of noise; so many people in each image, 45 px from one to the next, each of about 20 px."""
    g = torch.Generator().manual_seed(seed)
    count, slots, k = len(people), max(1, *people), skeleton.size
    there = torch.arange(slots) < torch.tensor(people)[:, None]
    middle = torch.tensor([[25.0, 25.0], [70.0, 30.0], [30.0, 70.0], [72.0, 75.0]])[:slots]
    keypoints = middle[None, :, None] + 20 * (torch.rand(count, slots, k, 2, generator=g) - 0.5)
    labelled = (torch.rand(count, slots, k, generator=g) >= missing) & there[..., None]
    low, high = keypoints.amin(dim=2) - 1, keypoints.amax(dim=2) + 1
    return prepared(torch.randn(count, 3, SIZE, SIZE, generator=g), there, keypoints, labelled, low, high)


def perfect(system, batch):
    """The maps that a detector which knows the people would give; all offsets count, of labelled joints."""
    terms, k = system.detector.terms, system.skeleton.size
    statistics = OffsetStatistics(terms)
    statistics.add(batch.keypoints[batch.people], batch.labelled[batch.people])
    statistics.store()
    count = len(batch)
    scores = torch.full((count, k, CELLS, CELLS), -9.0)
    refinement = torch.zeros(count, k, 2, CELLS, CELLS)
    offsets = torch.zeros(count, len(terms.mean), 2, CELLS, CELLS)
    nearest = torch.full((count, k, CELLS, CELLS), torch.inf)
    for i, p, a in torch.nonzero(batch.labelled).tolist():
        joint = batch.keypoints[i, p, a]
        others = [b for b in torch.nonzero(batch.labelled[i, p]).flatten().tolist() if b != a]
        pairs = terms.ordered[a, others]
        for row, column in cells_around(joint):
            centre = 8 * torch.tensor([column + 0.5, row + 0.5])
            distance = float((joint - centre).norm())
            if distance <= min(12, nearest[i, a, row, column]):
                nearest[i, a, row, column] = distance
                scores[i, a, row, column] = 9 - 1.5 * distance
                refinement[i, a, :, row, column] = (joint - centre) / part_detector.REFINEMENT
                expected = batch.keypoints[i, p, others] - centre
                offsets[i, pairs, :, row, column] = (expected - terms.mean[pairs]) / terms.deviation[pairs]
    return {"parts": scores, "scores": scores, "refinement": refinement, "offsets": offsets, "intermediate": scores}


def cells_around(joint):
    """Rows and columns of the cells within two of a position."""
    column, row = (joint // 8).int().tolist()
    return [
        (y, x) for y in range(row - 2, row + 3) for x in range(column - 2, column + 3) if {y, x} <= set(range(CELLS))
    ]


# ---------------------------------------------------------------- network and targets


@pytest.mark.parametrize("skeleton", [LSP14, COCO17], ids=lambda s: s.name)
@pytest.mark.parametrize("depth", [18, 50])
def test_any_skeleton_and_depth_reaches_every_parameter(skeleton, depth):
    system = tiny(skeleton, depth=depth)
    batch = scene(skeleton, [2, 0, 3], missing=0.2)
    outputs = system.forward(system.network, batch)
    k = skeleton.size
    assert outputs["parts"].shape == outputs["scores"].shape == outputs["intermediate"].shape == (3, k, CELLS, CELLS)
    assert outputs["refinement"].shape == (3, k, 2, CELLS, CELLS)
    assert outputs["offsets"].shape == (3, k * (k - 1), 2, CELLS, CELLS)
    losses = system.loss(outputs, batch)
    assert set(losses) == set(system.loss_terms)
    assert all(loss.shape == () and loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, p in system.network.named_parameters() if p.grad is None or not p.grad.any()] == []
    grouped = [id(p) for modules in system.groups.values() for module in modules for p in module.parameters()]
    assert len(grouped) == len(set(grouped)) == len(list(system.network.parameters()))


def test_size_at_the_papers_depth():
    """ResNet-101 without its classifier (42,500,160) and four 3x3 deconvolutions; two numbers per kind to calibrate."""
    system = tiny(depth=101, width=64)
    heads = [(2048, 14), (2048, 28), (2048, 2 * 14 * 13), (1024, 14)]
    assert parameter_count(system.network) == 42_500_160 + sum(9 * a * b + b for a, b in heads) + 28


def test_the_last_layer_sees_as_far_at_twice_the_resolution():
    plain, dilated = part_detector.ResNet(18, 8), part_detector.dilated(part_detector.ResNet(18, 8))
    image = torch.zeros(1, 3, 64, 64)
    assert plain(image).shape[-2:] == (2, 2)
    assert dilated(image).shape[-2:] == (4, 4)


def test_where_nothing_is_known_losses_are_0_and_gradients_there():
    system = tiny()
    batch = scene(LSP14, [2, 1])
    nobody = replace(scene(LSP14, [0, 0]), ignored=torch.ones_like(batch.ignored))
    for each in (nobody, replace(batch, labelled=torch.zeros_like(batch.labelled))):
        system.network.zero_grad()
        losses = system.loss(system.forward(system.network, each), each)
        assert losses["refinement"] == losses["offsets"] == 0
        assert all(loss.isfinite() for loss in losses.values())
        if each is nobody:
            assert all(loss == 0 for loss in losses.values())
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in system.network.parameters())


def test_targets_agree_with_a_loop():
    batch = scene(LSP14, [3], missing=0.3)
    ignored = batch.ignored.clone()
    ignored[:, :2, :1] = True
    t = part_detector.targets(batch.keypoints, batch.labelled, batch.boxes, ignored, (CELLS, CELLS), disc=0.3)
    cells = {
        tuple(key): number for number, key in enumerate(torch.stack([t.image, t.part, t.row, t.column], dim=1).tolist())
    }
    wide = 0
    points, boxes, labelled = batch.keypoints[0].tolist(), batch.boxes[0].tolist(), batch.labelled[0].tolist()
    near = t.near[0].tolist()
    for row in range(CELLS):
        for column in range(CELLS):
            x, y = 8 * column + 4, 8 * row + 4
            for a in range(14):
                best, who = math.inf, None
                for p in range(3):
                    left, top, right, bottom = boxes[p]
                    reach = max(6.0, 0.3 * max(right - left, bottom - top))
                    wide += reach > 6
                    distance = math.dist(points[p][a], (x, y)) if labelled[p][a] else math.inf
                    if distance <= reach and distance < best:
                        best, who = distance, p
                assert near[a][row][column] == (who is not None)
                assert ((0, a, row, column) in cells) == (who is not None)
                if who is not None:
                    number = cells[0, a, row, column]
                    assert t.known[number].tolist() == labelled[who]
                    known = batch.labelled[0, who]
                    wanted = (batch.keypoints[0, who] - torch.tensor([x, y]))[known].numpy()
                    np.testing.assert_allclose(t.joints[number][known].numpy(), wanted, atol=1e-4)
    assert wide
    assert t.weight[0, 0, 0, 0] == pytest.approx(0.5)
    assert (t.weight.flatten(1)[:, 1:] == 1).all()


def test_perfect_maps_have_no_regression_loss():
    system = tiny(disc=0.2)
    batch = scene(LSP14, [2, 1], missing=0.2)
    losses = system.loss(perfect(system, batch), batch)
    assert losses["refinement"] == pytest.approx(0, abs=1e-9)
    assert losses["offsets"] == pytest.approx(0, abs=1e-9)


def test_offset_statistics_agree_with_numpy():
    batch = scene(COCO17, [3, 2, 4], missing=0.3)
    terms = PairTerms(COCO17, "full")
    statistics = OffsetStatistics(terms)
    for i in range(3):
        statistics.add(batch.keypoints[i][batch.people[i]], batch.labelled[i][batch.people[i]])
    statistics.store()
    for a, b in [(0, 1), (1, 0), (5, 16), (16, 3)]:
        both = batch.labelled[..., a] & batch.labelled[..., b]
        offsets = (batch.keypoints[..., b, :] - batch.keypoints[..., a, :])[both].numpy()
        pair = int(terms.ordered[a, b])
        np.testing.assert_allclose(terms.mean[pair], offsets.mean(axis=0), atol=1e-4)
        np.testing.assert_allclose(terms.deviation[pair], offsets.std(axis=0), atol=1e-4)


# ---------------------------------------------------------------- pairwise terms


def test_features_agree_with_a_loop_whatever_the_order_of_candidates():
    terms = PairTerms(LSP14, "full")
    g = torch.Generator().manual_seed(2)
    terms.deviation.copy_(1 + 9 * torch.rand(terms.deviation.shape, generator=g))
    terms.weight.copy_(torch.randn(terms.weight.shape, generator=g))
    part = torch.tensor([3, 0, 13, 3, 7])
    position = 90 * torch.rand(5, 2, generator=g)
    offsets = 60 * torch.rand(5, 14, 2, generator=g) - 30
    logits = terms.logits(part, position, offsets)
    assert torch.allclose(logits, logits.T)
    for i in range(5):
        for j in range(5):
            a, b = int(part[i]), int(part[j])
            if a == b:
                distance = float((position[i] - position[j]).norm())
                wanted = float(terms.same[0]) * distance + float(terms.same[1])
            else:
                low, high = (i, j) if a < b else (j, i)
                four = []
                for here, there in ((low, high), (high, low)):
                    real = (position[there] - position[here]).tolist()
                    expected = offsets[here, part[there]].tolist()
                    spread = terms.deviation[terms.ordered[part[here], part[there]]].norm()
                    miss = math.dist(real, expected) / float(spread)
                    turn = math.atan2(real[1], real[0]) - math.atan2(expected[1], expected[0])
                    four += [miss, abs(math.remainder(turn, 2 * math.pi))]
                values = [*four, *(math.exp(-value) for value in four), 1.0]
                number = int(terms.unordered[a, b])
                wanted = sum(v * w for v, w in zip(values, terms.weight[number].tolist(), strict=True))
            assert float(logits[i, j]) == pytest.approx(max(-16, min(16, wanted)), abs=1e-3)


def test_the_regression_is_the_minimum_that_scipy_finds():
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(0, 2, (300, 3)), np.ones((300, 1))], axis=1)
    labels = (features @ [1.0, -2.0, 0.5, 0.3] + rng.logistic(size=300) > 0).astype(float)
    weights, prior = rng.uniform(0.5, 2, 300), np.array([0.5, 0.0, 0.0, -1.0])

    def loss(w):
        scores = features @ w
        return (weights * (np.logaddexp(0, scores) - labels * scores)).sum() + ((w - prior) ** 2).sum() / 2

    wanted = minimize(loss, prior, method="BFGS", options={"gtol": 1e-8}).x
    np.testing.assert_allclose(pair_terms.logistic(features, labels, weights, prior), wanted, atol=1e-4)
    # Perfectly separable examples have no minimum but for the prior's pull.
    separable = pair_terms.logistic(features, (features[:, 0] > 0).astype(float), weights, prior)
    assert np.isfinite(separable).all()
    assert separable[0] > 2


def test_regressions_without_examples_keep_their_prior():
    system = tiny()
    before = system.detector.terms.weight.clone()
    batch = scene(LSP14, [1])
    outputs = perfect(system, batch)
    system.prepare = lambda batch: batch
    system.forward = lambda network, batch: outputs
    nothing = system.fit(lambda: iter([replace(batch, labelled=torch.zeros_like(batch.labelled))]), None)
    assert torch.equal(system.detector.terms.weight, before)
    assert {facts["right"] for facts in nothing["pairwise regressions"]} == {None}
    system.fit(lambda: iter([batch]), None)
    assert not torch.equal(system.detector.terms.weight, before)


def test_fitted_terms_tell_one_person_from_another():
    system = tiny()
    batches = [scene(LSP14, [3, 4], seed=seed) for seed in range(3)]
    answers = {id(batch): perfect(system, batch) for batch in batches}
    perfect(system, batches[0])
    system.prepare = lambda batch: batch
    system.forward = lambda network, batch: answers[id(batch)]
    said = system.fit(lambda: iter(batches), None)
    assert said["images"] == 6
    *different, same = said["pairwise regressions"]
    assert [facts["kinds"] for facts in (different[0], same)] == ["right_ankle and right_knee", "two of one kind"]
    assert [facts["weights"] for facts in different] == system.detector.terms.weight.tolist()
    assert all(facts["together"] > 0 and facts["apart"] > 0 and facts["right"] == 1 for facts in different)
    for solved, people in zip(system.solve(answers[id(batches[0])]), (3, 4), strict=True):
        found = solved.candidates
        owner = system.owners(found, batches[0], 0 if people == 3 else 1)
        logits = system.detector.terms.logits(found.part, found.position, found.offsets)
        together = owner[:, None] == owner
        apart = ~together & (found.part[:, None] != found.part)
        assert logits[together & ~torch.eye(len(owner), dtype=torch.bool)].min() > 0
        assert logits[apart].max() < 0


@pytest.mark.parametrize(("skeleton", "reason"), [(NOSE, "has one joint"), (APART, "do not reach c, d from a")])
def test_skeletons_that_cannot_be_linked_are_refused(skeleton, reason):
    with pytest.raises(ConfigError, match=reason):
        tiny(skeleton, graph="limbs")
    if skeleton is APART:
        assert tiny(skeleton, graph="full").detector.terms.pairs == 6


def test_limbs_alone_link_people_too():
    system = tiny(graph="limbs")
    assert system.detector.terms.pairs == len(LSP14.limbs)
    batch = scene(LSP14, [2])
    assert len(system.decode(perfect(system, batch), batch)) == 2


# ---------------------------------------------------------------- decoding


@pytest.mark.parametrize("changes", [{}, {"solver": {"seconds": 0, "stages": False}}], ids=["exact", "local"])
@pytest.mark.parametrize("skeleton", [LSP14, COCO17], ids=lambda s: s.name)
def test_perfect_maps_give_back_the_people_exactly(skeleton, changes):
    system = tiny(skeleton, **changes)
    batch = scene(skeleton, [2, 0, 4])
    turn = torch.tensor([[2.0, 0, 5.0], [0, 2.0, 3.0]]).repeat(3, 1, 1)
    batch = replace(
        batch,
        to_original=turn,
        image_ids=torch.tensor([40, 7, 9]),
        image_sizes=torch.full((3, 2), 220.0),
    )
    people = system.decode(perfect(system, batch), batch)
    assert people.image_ids.tolist() == [40, 40, 9, 9, 9, 9]
    assert (people.optimality_gaps >= 0).all()
    if not changes:
        assert (people.optimality_gaps == 0).all()
    for image, image_id in ((0, 40), (2, 9)):
        found = people.select(people.image_ids == image_id)
        for person in range(int(batch.people[image].sum())):
            wanted = 2 * batch.keypoints[image, person].numpy() + np.array([5, 3])
            errors = np.abs(found.keypoints - wanted).max(axis=(1, 2))
            assert errors.min() < 1e-2
            row = errors.argmin()
            np.testing.assert_allclose(found.boxes[row, :2], wanted.min(axis=0), atol=1e-2)
            np.testing.assert_allclose(found.boxes[row, 2:], wanted.max(axis=0), atol=1e-2)
    assert (people.scores > 0.6).all()
    np.testing.assert_allclose(people.person_scores, people.scores.mean(axis=1), rtol=1e-5)


def test_belief_maps_are_highest_where_the_joints_are():
    system = tiny()
    batch = scene(LSP14, [2, 1])
    beliefs = system.belief_maps(perfect(system, batch))
    assert beliefs.shape == (2, 14, CELLS, CELLS)
    assert beliefs.min() >= 0
    assert beliefs.max() <= 1
    for i, p, a in torch.nonzero(batch.labelled).tolist():
        column, row = (batch.keypoints[i, p, a] // 8).int().tolist()
        assert beliefs[i, a, row, column] > 0.5
    assert (beliefs > 0.5).sum() < 0.1 * beliefs.numel()


def test_joints_that_are_missing_lie_in_the_middle_and_lower_the_score():
    system = tiny()
    batch = scene(LSP14, [2], missing=0.4)
    people = system.decode(perfect(system, batch), batch)
    assert len(people) == 2
    assert sorted((people.scores > 0).sum(axis=1)) == sorted(batch.labelled[0].sum(dim=1).tolist())
    for keypoints, scores, score in zip(people.keypoints, people.scores, people.person_scores, strict=True):
        absent = scores == 0
        np.testing.assert_allclose(
            keypoints[absent], np.tile(keypoints[~absent].mean(axis=0), (absent.sum(), 1)), rtol=1e-4
        )
        assert score == pytest.approx(scores.sum() / 14, rel=1e-5)


def test_people_of_too_few_joints_are_none():
    system = tiny()
    batch = scene(LSP14, [1])
    for count, people in ((2, 0), (3, 1)):
        few = replace(batch, labelled=batch.labelled & (torch.arange(14) < count))
        assert len(system.decode(perfect(system, few), few)) == people
    one = tiny(min_joints=1)
    few = replace(batch, labelled=batch.labelled & (torch.arange(14) < 1))
    answer = one.decode(perfect(one, few), few)
    np.testing.assert_allclose(answer.keypoints[0], np.tile(few.keypoints[0, 0, 0], (14, 1)), atol=1e-3)


def test_double_detections_become_one_joint_between_them():
    system = tiny()
    batch = scene(LSP14, [4])
    outputs = perfect(system, batch)
    # Three cells from the first person's right ankle another peak, whose refinement points 4 px to the joint's right.
    joint, terms = batch.keypoints[0, 0, 0], system.detector.terms
    row, column = int(joint[1] // 8), int(joint[0] // 8) + 3
    centre = 8 * torch.tensor([column + 0.5, row + 0.5])
    outputs["scores"][0, 0, row, column] = outputs["scores"][0, 0, row, column - 3]
    outputs["refinement"][0, 0, :, row, column] = (joint + torch.tensor([4.0, 0]) - centre) / part_detector.REFINEMENT
    pairs = terms.ordered[0, 1:]
    expected = batch.keypoints[0, 0, 1:] - centre
    outputs["offsets"][0, pairs, :, row, column] = (expected - terms.mean[pairs]) / terms.deviation[pairs]
    assert len(system.solve(outputs)[0].candidates.part) == 4 * 14 + 1
    people = system.decode(outputs, batch)
    assert len(people) == 4
    assert np.abs(people.keypoints[:, 0] - (joint + torch.tensor([2.0, 0])).numpy()).max(axis=1).min() < 0.01


def test_places_choose_their_kind():
    """Two kinds of joints look alike in one place; what they expect of the others decides."""
    system = tiny(candidates={"most": 100, "floor": 0.2, "radius": 1, "labels": "places"})
    batch = scene(LSP14, [1], seed=4)
    grid = torch.tensor([[13.0 + 21 * (n % 4), 13.0 + 21 * (n // 4)] for n in range(14)])
    batch = replace(batch, keypoints=grid[None, None], boxes=torch.tensor([[[10.0, 10, 90, 90]]]))
    outputs = perfect(system, batch)
    a, b = 6, 11
    row, column = divmod(int(outputs["scores"][0, a].argmax()), CELLS)
    outputs["scores"][0, b, row, column] = outputs["scores"][0, a, row, column] + 0.1
    (solved,) = system.solve(outputs)
    assert sorted(np.bincount(solved.problem.owner))[-1] == 2
    assert solved.candidates.part.tolist().count(b) == 2, "by its score alone it is the other kind"
    assert solved.partition.gap == 0
    np.testing.assert_allclose(solved.people.keypoints[0], grid, atol=1e-2)


@pytest.mark.parametrize(("skeleton", "sizes"), [(LSP14, [4, 4, 6]), (COCO17, [7, 4, 6])], ids=["lsp14", "coco17"])
def test_stages_are_head_and_shoulders_then_arms_then_the_rest(skeleton, sizes):
    system = tiny(skeleton, solver={"seconds": 1.0, "stages": True})
    masks = system.stages(np.arange(skeleton.size))
    assert [int(mask.sum()) for mask in masks] == sizes
    assert (np.sum(masks, axis=0) == 1).all()
    assert {skeleton.joints[n] for n in np.flatnonzero(masks[1])} == {
        f"{side}_{joint}" for side in ("left", "right") for joint in ("elbow", "wrist")
    }
    batch = scene(skeleton, [3])
    people = system.decode(perfect(system, batch), batch)
    assert system.solve(perfect(system, batch))[0].unproven == 0
    # Each stage is proven, the whole is not.
    assert (people.optimality_gaps > 0).all()
    wanted = sorted(batch.keypoints[0].flatten(1).tolist())
    np.testing.assert_allclose(sorted(people.keypoints.reshape(3, -1).tolist()), wanted, atol=1e-2)


def test_the_likeliest_candidates_stay_and_a_warning_says_so(capsys):
    limit = {"most": 20, "floor": 0.2, "radius": 2, "labels": "kinds"}
    system = tiny(candidates=limit)
    batch = replace(scene(LSP14, [1, 2]), image_ids=torch.tensor([5, 77]))
    outputs = perfect(system, batch)
    outputs["scores"][1, :, :, : CELLS // 2] -= 3
    solved = system.solve(outputs)
    assert [len(each.candidates.part) for each in solved] == [14, 20]
    every = tiny().solve(outputs)[1].candidates.probability
    assert solved[1].candidates.probability.tolist() == sorted(every.tolist(), reverse=True)[:20]
    system.decode(outputs, batch)
    said = capsys.readouterr().err
    assert "1 of 2 images have more than 20 candidate joints (image id 77 has 28)" in said
    system.decode(outputs, batch)
    assert capsys.readouterr().err == "", "a video would have a line for every frame"
    tiny().decode(outputs, batch)
    assert capsys.readouterr().err == ""


def test_out_of_time_the_best_found_comes_with_its_gap(capsys):
    """Maps of noise: about a hundred candidates that nothing holds together."""
    noise = {name: torch.randn(shape, generator=torch.Generator().manual_seed(3)) for name, shape in {
        "scores": (1, 14, CELLS, CELLS), "refinement": (1, 14, 2, CELLS, CELLS), "offsets": (1, 182, 2, CELLS, CELLS),
    }.items()}  # fmt: skip
    answers, said = {}, {}
    for seconds in (0.0, 0.02, 5.0):
        system = tiny(solver={"seconds": seconds, "stages": False}, min_joints=1)
        system.detector.terms.deviation.fill_(20.0)
        system.detector.terms.same.copy_(torch.tensor([-0.02, 1.0]))
        (answers[seconds],) = system.solve(noise)
        system.decode(noise, scene(LSP14, [1]))
        said[seconds] = capsys.readouterr().err
    assert len(answers[0.0].candidates.part) == 100
    assert answers[5.0].partition.value <= answers[0.0].partition.value + 1e-6
    assert answers[0.0].partition.gap == answers[0.0].unproven > 0
    assert answers[5.0].unproven < answers[0.0].unproven
    assert "1 of 1 images were not solved to a proven optimum in 0.02 s; the largest gap is " in said[0.02]
    assert "proven" not in said[0.0], "nobody asked for a proof"
    assert answers[0.0].partition.bound <= answers[5.0].partition.value
    assert len(answers[0.0].people.scores) > 0


def test_maps_that_are_not_numbers_are_refused_by_image():
    system = tiny()
    batch = scene(LSP14, [1, 1])
    outputs = perfect(system, batch)
    outputs["refinement"][1, 3, 0, 2, 2] = torch.nan
    with pytest.raises(PoseError, match="maps of image 1 of 2 in this batch hold values that are not numbers"):
        system.decode(outputs, batch)


@pytest.mark.parametrize("size", [(3, 5), (8000, 40), (64, 64)])
def test_pictures_of_any_size_are_answered(size):
    system = tiny()
    system.network.eval()
    picture = Image.new("RGB", size, (90, 90, 90))
    batch = system.prepare(scenes.unlabelled([picture], [8], SIZE, LSP14))
    with torch.no_grad():
        people = system.decode(system.forward(system.network, batch), batch)
    assert len(people) == 0
    assert people.keypoints.shape == (0, 14, 2)


def test_the_highest_of_a_disc_agrees_with_a_loop():
    maps = torch.rand(2, 7, 9, generator=torch.Generator().manual_seed(0))
    for radius in (1, 2, 4):
        found = highest_around(maps, radius)
        for row in range(7):
            for column in range(9):
                inside = [(y, x) for y in range(7) for x in range(9) if (y - row) ** 2 + (x - column) ** 2 <= radius**2]
                wanted = torch.stack([maps[:, y, x] for y, x in inside]).amax(dim=0)
                assert torch.equal(found[:, row, column], wanted)


def test_of_certain_neighbours_the_more_certain_one_is_the_candidate():
    """Both probabilities are 1 as far as a float can say."""
    system = tiny()
    outputs = perfect(system, scene(LSP14, [0]))
    outputs["scores"][0, 3, 5, 5:7] = torch.tensor([30.0, 20.0])
    (solved,) = system.solve(outputs)
    assert solved.candidates.cell.tolist() == [5 * CELLS + 5]
    assert solved.candidates.probability.tolist() == [1.0]


def test_the_graphs_contraction_finds_the_people_that_the_search_finds():
    system = tiny()
    batch = scene(LSP14, [2, 0, 4])
    outputs = perfect(system, batch)
    quick = system.people(outputs)
    slow = [each.people for each in system.solve(outputs)]
    assert quick.image.tolist() == [0, 0, 2, 2, 2, 2]
    wanted = [torch.cat([getattr(each, field.name) for each in slow]) for field in fields(Found)]
    got = [getattr(quick, field.name) for field in fields(Found)]
    # Those that are equally good stand in any order.
    for answer in (wanted, got):
        order = (1000 * answer[0] + answer[1][:, 0]).argsort()
        answer[:] = [column[order] for column in answer]
    for ours, theirs in zip(wanted, got, strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-3, rtol=1e-4)


def test_the_graphs_contraction_is_near_the_search_among_noise():
    rng = np.random.default_rng(1)
    person = np.repeat(np.arange(4), 10)
    pair = np.triu(np.where(person[:, None] == person, -2.0, 2.0) + rng.normal(0, 1.5, (40, 40)), 1)
    problem = Problem(np.arange(40), rng.normal(-1, 1, 40), pair + pair.T)
    unary, costs = torch.from_numpy(problem.unary), torch.from_numpy(problem.pair)
    member = partition_graph.contract(unary, costs, torch.ones(40, dtype=torch.bool)).numpy()
    assert set(member.sum(axis=1)) <= {0, 1}
    value = float(problem.unary @ member.sum(axis=1) + (member.T @ problem.pair @ member).trace() / 2)
    best = local_search(problem).value
    assert best <= value + 1e-9 <= 0.95 * best


def test_recipes_without_calibration_odd_canvases_and_single_people_are_refused():
    whole = load().systems["deepcut"].model_dump()
    recipe = whole["recipes"]["modern"]
    with pytest.raises(ValueError, match="the last phase trains trunk, heads, expected calibration too"):
        tiny(recipes={"modern": recipe | {"phases": recipe["phases"][:1]}})
    # As bundles recorded it before there was a step that fits.
    before = {key: value for key, value in whole.items() if key != "fit_images"}
    assert type(load().systems["deepcut"]).model_validate(before).fit_images == 1000
    with pytest.raises(ValueError, match=r"is 100x96 px; expected sides that are multiples of 16"):
        tiny(input_size=(100, 96))
    with pytest.raises(PoseError, match="DeepCut sees whole scenes"):
        tiny().joints({})


# ---------------------------------------------------------------- drawn scenes


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Two scenes of one to three people, as a prepared dataset has them."""
    return write_drawn(tmp_path_factory.mktemp("drawn"), SIZE, (1, 2))


def batches_of(split):
    return SceneLoader(split, 1).batches(np.arange(len(split)), len(split), None, 0, 0)


@pytest.fixture(scope="module")
def learned(drawn):
    """A system that has both scenes by heart."""
    split = SceneSplit.open(drawn, "train")
    system = tiny()
    detector, _ = system.params.chosen.phases
    system.network.eval()
    system.begin_phase(detector, lambda: batches_of(split))
    batch = system.prepare(next(batches_of(split)))
    optimiser = torch.optim.AdamW(system.network.parameters(), lr=2e-3)
    system.network.train()
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1, 2 * (STEPS - step) / STEPS)
        losses = system.loss(system.forward(system.network, batch), batch)
        optimiser.zero_grad()
        sum(weight * losses[name] for name, weight in detector.losses.items()).backward()
        torch.nn.utils.clip_grad_norm_(system.network.parameters(), 5.0)
        optimiser.step()
    system.network.eval()
    system.fit(lambda: batches_of(split), None)
    return system


def test_finds_everyone_in_two_drawn_scenes(drawn, learned):
    split = SceneSplit.open(drawn, "train")
    batch = learned.prepare(next(batches_of(split)))
    with torch.no_grad():
        people = learned.decode(learned.forward(learned.network, batch), batch)
    assert (people.optimality_gaps == 0).all()
    assert len(people) == len(split.keypoints) > 2
    for row in range(len(split)):
        found = people.select(people.image_ids == split.image_ids[row])
        place = split.people_of(row)
        assert len(found) == place.stop - place.start
        for person in range(place.start, place.stop):
            errors = np.linalg.norm(found.keypoints - split.keypoints[person], axis=2)[:, split.labelled[person]]
            assert (errors < 3).mean(axis=1).max() >= 0.9


def test_restored_weights_bring_their_pairwise_terms(drawn, learned, tmp_path):
    save_file(learned.network.state_dict(), tmp_path / "model.safetensors")
    restored = restore(tiny(), tmp_path / "model.safetensors")
    assert torch.equal(restored.detector.terms.weight, learned.detector.terms.weight)
    assert not torch.equal(restored.detector.terms.weight, tiny().detector.terms.weight)
    batch = learned.prepare(next(batches_of(SceneSplit.open(drawn, "train"))))
    with torch.no_grad():
        wanted, got = (s.decode(s.forward(s.network, batch), batch) for s in (learned, restored))
    np.testing.assert_array_equal(got.keypoints, wanted.keypoints)


def test_the_engine_trains_and_the_step_after_it_fits_once_and_keeps_it(drawn, tmp_path):
    recipe = load().systems["deepcut"].recipes["modern"].model_dump()
    for phase in recipe["phases"]:
        phase["epochs"] = 1
    system = tiny(recipes={"modern": recipe | {"batch_size": 1}}, candidates={
        "most": 100, "floor": 0.001, "radius": 2, "labels": "kinds"})  # fmt: skip
    half, crop = np.full((14, 2), 0.5), CropParams(view="person", size=48)
    DatasetInfo("drawn", "lsp14", crop, {}, {}, 0, {}, half, 48 * half, half[:, 0]).save(drawn)
    outcome = trained("deepcut", system.params, drawn, tmp_path)
    assert outcome.metric == "val/loss"
    restored = restore(tiny(), outcome.weights)
    assert not torch.equal(restored.detector.terms.mean, tiny().detector.terms.mean)
    assert torch.equal(restored.detector.terms.weight, tiny().detector.terms.weight)
    assert (restored.detector.calibration.factor != 1).all()
    assert not restored.detector.calibration.factor.isnan().any()
    with pytest.raises(TrainingError, match=r"what it fits to the training split afterwards is missing: .*pose train"):
        weights.trained(outcome.run_dir)

    spec = TrainingSpec.load(outcome.run_dir / "spec.json")
    assert fitting.needed(spec)
    folder = fitting.fit(spec, outcome)
    fitted = weights.trained(outcome.run_dir)
    assert fitted.weights.parent == folder
    said = json.loads((folder / "fitted.json").read_text())
    assert said["images"] == len(SceneSplit.open(drawn, "train"))
    terms = fitted.system.detector.terms
    assert [facts["weights"] for facts in said["pairwise regressions"]] == [*terms.weight.tolist(), terms.same.tolist()]
    assert not torch.equal(terms.weight, restored.detector.terms.weight)
    assert torch.equal(fitted.system.detector.calibration.factor, restored.detector.calibration.factor)

    # Found again, unless the weights are other ones.
    (folder / "fitted.json").write_text(json.dumps(said | {"kept": True}))
    fitting.fit(spec, outcome)
    assert "kept" in json.loads((folder / "fitted.json").read_text())
    fitting.fit(spec, replace(outcome, weights_sha256="other"))
    again = json.loads((folder / "fitted.json").read_text())
    assert again.pop("made of") == said.pop("made of") | {"weights_sha256": "other"}
    assert again == said


@pytest.mark.slow
def test_graphs_have_the_contraction_and_a_bundle_the_proven_optimum(drawn, learned, tmp_path):
    split = SceneSplit.open(drawn, "test")
    save_file(learned.network.state_dict(), tmp_path / "trained.safetensors")
    params = ExportParams(tolerance_px=0.05, parity_images=2, latency_runs=1)
    report = export(
        "deepcut", learned, tmp_path / "trained.safetensors", split, CropParams(view="person", size=48),
        tmp_path / "bundle", params, threads=1,
    )  # fmt: skip
    assert set(report.parity_px) == {"onnx", "torch_export"}
    assert max(report.parity_px.values()) <= 0.05
    pictures = [Image.open(io.BytesIO(split.jpeg(row).tobytes())) for row in range(len(split))]
    model = SceneModel.load(tmp_path / "bundle")
    assert model.finds_joints
    predicted = model.predict(pictures, split.image_ids.tolist())
    batch = learned.prepare(next(batches_of(split)))
    with torch.no_grad():
        people = learned.decode(learned.forward(learned.network, batch), batch)
    assert len(predicted) == len(people) > 2
    assert (predicted.optimality_gaps == 0).all()
    wanted, got = (sorted(found.keypoints.reshape(len(found), -1).tolist()) for found in (people, predicted))
    np.testing.assert_allclose(got, wanted, atol=0.05)
