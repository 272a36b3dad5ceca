"""Which outputs are to find which objects, and what it costs, against loops over single objects and outputs."""

import math
from dataclasses import replace

import pytest
import torch

from pose.data.batch import IGNORE_STRIDE, SceneBatch
from pose.layers.kapao_loss import BALANCE, assign, ciou, kapao_losses, objects_of

JOINTS, SIDE = 5, 128
STRIDES = (8, 16, 32, 64)
# One level's worth of small anchors, and three times as large from level to level; px.
ANCHORS = torch.tensor([[4.0, 4], [8, 14], [20, 12]]) * 2.2 ** torch.arange(4)[:, None, None]
SQUARE = 6.4


def scene(seed=0, people=3):
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(2, people, 2, generator=g) * SIDE * 0.6
    high = low + 4 + torch.rand(2, people, 2, generator=g) * SIDE * 0.35
    there = torch.rand(2, people, generator=g) > 0.3
    there[:, 0] = True
    labelled = (torch.rand(2, people, JOINTS, generator=g) > 0.3) & there[..., None]
    keypoints = low[:, :, None] + torch.rand(2, people, JOINTS, 2, generator=g) * (high - low)[:, :, None]
    cells = SIDE // IGNORE_STRIDE
    return SceneBatch(
        images=torch.zeros(2, 3, SIDE, SIDE), extents=torch.full((2, 2), float(SIDE)), people=there,
        keypoints=torch.where(labelled[..., None], keypoints, torch.nan), labelled=labelled,
        presence=labelled.float(), boxes=torch.cat([low, high], dim=2) * there[..., None],
        areas=(high - low).prod(dim=2), ignored=torch.zeros(2, cells, cells, dtype=torch.bool),
        to_original=torch.eye(2, 3).repeat(2, 1, 1), sample=torch.arange(2), image_ids=torch.arange(2),
        image_sizes=torch.full((2, 2), float(SIDE)),
    )  # fmt: skip


def listed(batch):
    """The objects one by one: (image, class, cx, cy, w, h, keypoints, labelled), people first."""
    people, joints = [], []
    for i in range(len(batch)):
        for p in range(batch.people.shape[1]):
            x0, y0, x1, y1 = batch.boxes[i, p].tolist()
            if not batch.people[i, p] or x1 <= x0 or y1 <= y0:
                continue
            points = batch.keypoints[i, p].tolist()
            known = batch.labelled[i, p].tolist()
            people.append((i, 0, (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0, points, known))
            joints += [
                (i, 1 + k, *points[k], SQUARE, SQUARE, None, [False] * JOINTS) for k in range(JOINTS) if known[k]
            ]
    return people + joints


def cells_of(x, y, width, height):
    """The cell of a point and its neighbours that are nearer than half a cell, within a grid."""
    column, row = min(int(x), width - 1), min(int(y), height - 1)
    cells = [(column, row)]
    if x % 1 < 0.5 and x > 1:
        cells.append((column - 1, row))
    if y % 1 < 0.5 and y > 1:
        cells.append((column, row - 1))
    if (width - x) % 1 < 0.5 and width - x > 1:
        cells.append((column + 1, row))
    if (height - y) % 1 < 0.5 and height - y > 1:
        cells.append((column, row + 1))
    return cells


def assigned(boxes, anchors, width, height, ratio):
    """The set of (object, anchor, row, column), all in cells."""
    result = set()
    for n, (x, y, w, h) in enumerate(boxes):
        for a, (aw, ah) in enumerate(anchors):
            if max(w / aw, aw / w, h / ah, ah / h) < ratio:
                result |= {(n, a, row, column) for column, row in cells_of(x, y, width, height)}
    return result


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("level", range(4))
def test_assignment_is_that_of_a_loop(seed, level):
    stride = STRIDES[level]
    objects = objects_of(scene(seed), SQUARE)
    boxes, anchors = objects.boxes / stride, ANCHORS[level] / stride
    width = SIDE // stride
    found = assign(boxes, anchors, (width, width), 4.0)
    got = list(zip(*(t.tolist() for t in (found.object, found.anchor, found.row, found.column)), strict=True))
    wanted = assigned(boxes.tolist(), anchors.tolist(), width, width, 4.0)
    assert len(got) == len(set(got))
    assert set(got) == wanted
    assert wanted, "nothing to compare"


@pytest.mark.parametrize(("x", "y"), [(0.0, 0.0), (7.999, 4.2), (8.0, 6.0), (0.4, 5.0), (1.0, 1.0), (8.0, 0.0)])
def test_centres_on_edges_stay_in_the_grid(x, y):
    found = assign(torch.tensor([[x, y, 2, 2]]), torch.tensor([[2.0, 2]]), (6, 8), 4.0)
    assert len(found.object) >= 1
    assert ((found.column >= 0) & (found.column < 8)).all()
    assert ((found.row >= 0) & (found.row < 6)).all()
    got = set(zip(found.column.tolist(), found.row.tolist(), strict=True))
    assert got == set(cells_of(x, y, 8, 6))


def single_ciou(first, second):
    (x, y, w, h), (u, v, p, q) = first, second
    across = max(0.0, min(x + w / 2, u + p / 2) - max(x - w / 2, u - p / 2))
    down = max(0.0, min(y + h / 2, v + q / 2) - max(y - h / 2, v - q / 2))
    overlap = across * down / (w * h + p * q - across * down)
    wide = max(x + w / 2, u + p / 2) - min(x - w / 2, u - p / 2)
    tall = max(y + h / 2, v + q / 2) - min(y - h / 2, v - q / 2)
    aspect = 4 / math.pi**2 * (math.atan(p / q) - math.atan(w / h)) ** 2
    weight = aspect / (1 - overlap + aspect) if aspect else 0.0
    return overlap - ((x - u) ** 2 + (y - v) ** 2) / (wide**2 + tall**2) - weight * aspect


def test_complete_iou_is_that_of_single_boxes():
    g = torch.Generator().manual_seed(1)
    first, second = (torch.rand(50, 4, generator=g) * 4 + 0.5 for _ in range(2))
    wanted = [single_ciou(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert ciou(first, second).tolist() == pytest.approx(wanted, abs=1e-5)
    assert ciou(first, first).tolist() == pytest.approx([1.0] * 50, abs=1e-5)


@pytest.mark.parametrize("raw", [(-20.0, -12.0), (-31.0, -25.0), (-60.0, -60.0)])
def test_boxes_that_have_shrunk_to_nothing_still_have_a_gradient(raw):
    """In a long training an output has: the aspect of 1e-27 by 1e-22 had an infinite one."""
    output = torch.tensor([[0.3, -0.2, *raw]], requires_grad=True)
    share = output.sigmoid()
    predicted = torch.cat([share[:, :2] * 2 + 5, (share[:, 2:] * 2) ** 2 * 3], dim=1)
    (1 - ciou(predicted, torch.tensor([[6.1, 6.6, 2.3, 2.4]]))).sum().backward()
    assert output.grad.isfinite().all()
    assert output.grad[0, :2].any()


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def cross_entropy(logit, wanted):
    return -wanted * math.log(sigmoid(logit)) - (1 - wanted) * math.log(1 - sigmoid(logit))


def plain_losses(levels, batch):
    """The losses, output by output."""
    objects = listed(batch)
    sums = dict.fromkeys(("box", "objectness", "classes", "keypoints"), 0.0)
    for level, raw in enumerate(levels):
        stride = STRIDES[level]
        images, anchors, height, width, _ = raw.shape
        boxes = [[value / stride for value in each[2:6]] for each in objects]
        best, box, classes, keypoints = {}, [], [], []
        for n, a, row, column in sorted(assigned(boxes, (ANCHORS[level] / stride).tolist(), width, height, 4.0)):
            image, kind, points, known = objects[n][0], objects[n][1], objects[n][6], objects[n][7]
            out = raw[image, a, row, column].tolist()
            aw, ah = (ANCHORS[level, a] / stride).tolist()
            predicted = (
                2 * sigmoid(out[0]) - 0.5 + column, 2 * sigmoid(out[1]) - 0.5 + row,
                (2 * sigmoid(out[2])) ** 2 * aw, (2 * sigmoid(out[3])) ** 2 * ah,
            )  # fmt: skip
            overlap = single_ciou(predicted, boxes[n])
            box.append(1 - overlap)
            place = (image, a, row, column)
            best[place] = max(best.get(place, 0.0), overlap)
            classes += [cross_entropy(out[5 + c], float(c == kind)) for c in range(1 + JOINTS)]
            for k in range(JOINTS):
                if known[k]:
                    x = (4 * sigmoid(out[6 + JOINTS + 2 * k]) - 2) * aw + column
                    y = (4 * sigmoid(out[7 + JOINTS + 2 * k]) - 2) * ah + row
                    keypoints.append(math.hypot(x - points[k][0] / stride, y - points[k][1] / stride))
        everything = []
        for image in range(images):
            for a in range(anchors):
                for row in range(height):
                    for column in range(width):
                        place = (image, a, row, column)
                        cell = int((row + 0.5) * stride) // IGNORE_STRIDE, int((column + 0.5) * stride) // IGNORE_STRIDE
                        hidden = bool(batch.ignored[image, *cell]) and place not in best
                        logit = raw[image, a, row, column, 4].item()
                        everything.append(0.0 if hidden else cross_entropy(logit, best.get(place, 0.0)))
        for name, values in (("box", box), ("classes", classes), ("keypoints", keypoints)):
            sums[name] += sum(values) / max(1, len(values))
        sums["objectness"] += BALANCE[level] * sum(everything) / len(everything)
    factors = {"box": 1, "objectness": (SIDE / 640) ** 2, "classes": (1 + JOINTS) / 80, "keypoints": 1}
    return {name: 0.75 * factors[name] * value for name, value in sums.items()}


def raw_levels(seed=3):
    g = torch.Generator().manual_seed(seed)
    outputs = 5 + 1 + 3 * JOINTS
    return [torch.randn(2, 3, SIDE // s, SIDE // s, outputs, generator=g) for s in STRIDES]


def losses(levels, batch):
    strides = torch.tensor(STRIDES)[:, None, None]
    return kapao_losses(levels, objects_of(batch, SQUARE), ANCHORS / strides, batch.ignored, 4.0)


@pytest.mark.parametrize("ignored", [False, True])
def test_losses_of_a_seeded_batch_are_those_of_a_loop(ignored):
    batch = scene(4)
    if ignored:
        g = torch.Generator().manual_seed(8)
        batch = replace(batch, ignored=torch.rand(batch.ignored.shape, generator=g) < 0.4)
    levels = raw_levels()
    wanted = plain_losses(levels, batch)
    got = {name: float(value) for name, value in losses(levels, batch).items()}
    assert got == pytest.approx(wanted, rel=2e-5)
    assert min(got.values()) > 0


def test_what_is_not_labelled_or_in_no_slot_changes_nothing():
    batch = scene(4)
    dirt = replace(
        batch,
        keypoints=torch.where(batch.labelled[..., None], batch.keypoints, 40.0),
        boxes=torch.where(batch.people[..., None], batch.boxes, torch.tensor([3.0, 3, 50, 50])),
    )
    assert losses(raw_levels(), batch) == losses(raw_levels(), dirt)


def test_nobody_leaves_objectness_alone_and_gradients_finite():
    batch = scene(4)
    nobody = replace(batch, people=torch.zeros_like(batch.people), labelled=torch.zeros_like(batch.labelled))
    levels = [raw.requires_grad_() for raw in raw_levels()]
    terms = losses(levels, nobody)
    assert [name for name, value in terms.items() if value] == ["objectness"]
    sum(terms.values()).backward()
    assert all(raw.grad.isfinite().all() for raw in levels)
    assert levels[0].grad[..., 4].all()
    hidden = losses(raw_levels(), replace(nobody, ignored=torch.ones_like(nobody.ignored)))
    assert sum(hidden.values()) == 0


def test_a_person_without_labelled_joints_is_still_a_box():
    batch = scene(4)
    batch = replace(batch, labelled=torch.zeros_like(batch.labelled))
    objects = objects_of(batch, SQUARE)
    assert objects.kind.tolist() == [0] * int(batch.people.sum())
    terms = losses(raw_levels(), batch)
    assert terms["box"] > 0
    assert terms["keypoints"] == 0
