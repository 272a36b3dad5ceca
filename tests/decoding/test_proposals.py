"""Pose atoms and offset mixtures give back what was planted, and drawn boxes follow it."""

import pytest
import torch

from pose.decoding.proposals import (
    RELEASED_DEVIATION,
    RELEASED_MEAN,
    Offsets,
    align,
    assign,
    cluster,
    match,
    mixture,
    shift_edges,
)
from pose.errors import DataError
from pose.skeleton import COCO17, LSP14


def planted_poses(count: int, atoms: int, seed: int = 0, noise: float = 0.03):
    """Poses around planted atoms, each moved and scaled at random; with the atoms aligned, and whose is whose."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(atoms, LSP14.size, 2, generator=g, dtype=torch.float64)
    aligned, _ = align(centres, torch.ones(atoms, LSP14.size, dtype=torch.bool), LSP14)
    belongs = torch.arange(count) % atoms
    poses = aligned[belongs] + noise * torch.randn(count, LSP14.size, 2, generator=g, dtype=torch.float64)
    scale = 20 + 100 * torch.rand(count, 1, 1, generator=g, dtype=torch.float64)
    poses = poses * scale + 300 * torch.rand(count, 1, 2, generator=g, dtype=torch.float64)
    return poses, aligned, belongs


def matched(found: torch.Tensor, planted: torch.Tensor) -> torch.Tensor:
    """For each planted row the nearest found one."""
    return torch.cdist(planted.flatten(1), found.flatten(1)).argmin(dim=1)


def test_alignment_forgets_place_and_size():
    poses, _, _ = planted_poses(10, 3)
    labelled = torch.ones(10, LSP14.size, dtype=torch.bool)
    labelled[0, 3] = False
    one, whole = align(poses, labelled, LSP14)
    other, _ = align(7 * poses + torch.tensor([4.0, -90.0]), labelled, LSP14)
    assert whole.all()
    assert other == pytest.approx(one, abs=1e-9)
    a, b = (LSP14.index(joint) for joint in LSP14.torso)
    assert (one[:, a] - one[:, b]).norm(dim=1) == pytest.approx(torch.ones(10), abs=1e-9)
    assert (one[0, 3] == 0).all()


def test_a_pose_without_torso_belongs_to_the_last_mixture():
    poses, aligned, _ = planted_poses(4, 2)
    labelled = torch.ones(4, LSP14.size, dtype=torch.bool)
    labelled[1, LSP14.index("right_hip")] = False
    own, whole = align(poses, labelled, LSP14)
    assert whole.tolist() == [True, False, True, True]
    assert assign(own, labelled & whole[:, None], aligned).tolist() == [0, 2, 0, 1]


def test_k_means_finds_planted_atoms_with_a_fifth_of_the_joints_missing():
    poses, planted, belongs = planted_poses(600, 5)
    labelled = torch.rand(600, LSP14.size, generator=torch.Generator().manual_seed(1)) > 0.2
    aligned, whole = align(poses, labelled, LSP14)
    known = labelled & whole[:, None]
    centres = cluster(aligned[whole], known[whole], 5, torch.Generator().manual_seed(0))
    order = matched(centres, planted)
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4]
    assert (centres[order] - planted).abs().max() < 0.05
    assert (assign(aligned[whole], known[whole], centres[order]) == belongs[whole]).all()


def test_more_atoms_than_poses_are_refused():
    poses, _, _ = planted_poses(3, 3)
    with pytest.raises(DataError, match=r"3 samples are too few for 4 clusters"):
        cluster(poses, torch.ones(3, LSP14.size, dtype=torch.bool), 4, torch.Generator())


def test_expectation_maximisation_finds_a_planted_mixture():
    g = torch.Generator().manual_seed(0)
    weights = torch.tensor([0.7, 0.3], dtype=torch.float64)
    means = torch.tensor([[0.0, 0.1, -0.1, 0.2], [0.5, -0.3, 0.3, -0.2]], dtype=torch.float64)
    factors = 0.05 * torch.eye(4, dtype=torch.float64) + 0.05 * torch.randn(2, 4, 4, generator=g).tril().double()
    component = torch.multinomial(weights, 8_000, replacement=True, generator=g)
    noise = torch.randn(8_000, 4, 1, generator=g, dtype=torch.float64)
    samples = means[component] + (factors[component] @ noise)[:, :, 0]
    found_weights, found_means, covariances = mixture(samples, 2, torch.Generator().manual_seed(0))
    order = matched(found_means, means)
    assert found_weights[order] == pytest.approx(weights, abs=0.02)
    assert found_means[order] == pytest.approx(means, abs=0.01)
    # The fit adds its floor of 1e-4 to the diagonal.
    wanted = factors @ factors.transpose(1, 2) + 1e-4 * torch.eye(4)
    assert covariances[order] == pytest.approx(wanted, abs=1.5e-3)


def planted_offsets():
    """Two atoms whose people are missed differently; 4,000 detections of them."""
    poses, _, belongs = planted_poses(2000, 2)
    g = torch.Generator().manual_seed(3)
    means = torch.tensor([[-0.2, 0.0, 0.1, 0.0], [0.1, -0.1, 0.0, 0.3]], dtype=torch.float64)
    people = torch.arange(4000) % 2000
    offsets = means[belongs[people]] + 0.05 * torch.randn(4000, 4, generator=g, dtype=torch.float64)
    labelled = torch.ones(2000, LSP14.size, dtype=torch.bool)
    return poses, labelled, offsets, people, belongs, means


def test_drawn_offsets_follow_the_planted_distribution_of_their_atom():
    poses, labelled, offsets, people, belongs, means = planted_offsets()
    fitted = Offsets.fit(poses, labelled, offsets, people, LSP14, atoms=2, components=1, seed=0)
    torch.manual_seed(5)
    drawn = torch.cat([fitted.draw(poses.float(), labelled, LSP14) for _ in range(5)])
    for atom in (0, 1):
        own = drawn[belongs.repeat(5) == atom]
        # 5,000 draws: a standard error of 0.0007 in the mean.
        assert own.mean(dim=0) == pytest.approx(means[atom].float(), abs=0.005)
        assert own.std(dim=0) == pytest.approx(torch.full((4,), 0.051), abs=0.003)


def test_draws_come_from_torchs_generator_alone():
    poses, labelled, *_ = planted_offsets()
    released = Offsets.released(4, 3, LSP14.size)
    torch.manual_seed(1)
    first = released.draw(poses.float(), labelled, LSP14)
    second = released.draw(poses.float(), labelled, LSP14)
    torch.manual_seed(1)
    assert torch.equal(released.draw(poses.float(), labelled, LSP14), first)
    assert not torch.equal(first, second)


def test_without_detections_the_released_gaussians_are_drawn():
    poses, labelled, *_ = planted_offsets()
    torch.manual_seed(0)
    released = Offsets.released(4, 3, LSP14.size)
    drawn = torch.cat([released.draw(poses.float(), labelled, LSP14) for _ in range(10)])
    assert drawn.mean(dim=0) == pytest.approx(torch.tensor(RELEASED_MEAN), abs=0.004)
    assert drawn.std(dim=0) == pytest.approx(torch.tensor(RELEASED_DEVIATION), abs=0.004)


def test_a_scarce_atom_has_everyones_mixture_and_too_few_detections_are_refused():
    poses, labelled, offsets, people, belongs, _ = planted_offsets()
    rare = (belongs[people] == 0) | (torch.arange(4000) < 20)
    fitted = Offsets.fit(poses, labelled, offsets[rare], people[rare], LSP14, atoms=2, components=2, seed=0)
    alike = [torch.equal(fitted.means[atom], fitted.means[2]) for atom in (0, 1)]
    assert sorted(alike) == [False, True]
    with pytest.raises(DataError, match=r"7 detections.*at least 10.*lower `components`"):
        Offsets.fit(poses, labelled, offsets[:7], people[:7], LSP14, atoms=2, components=1, seed=0)


def test_moved_edges_and_a_floor_under_the_sides():
    boxes = torch.tensor([[10.0, 20.0, 110.0, 70.0], [0.0, 0.0, 10.0, 10.0]])
    offsets = torch.tensor([[-0.1, 0.2, 0.1, 0.0], [0.9, 0.0, -0.9, 0.0]])
    moved = shift_edges(boxes, offsets)
    assert moved[0].tolist() == pytest.approx([0, 30, 120, 70])
    assert moved[1].tolist() == pytest.approx([3.5, 0, 6.5, 10]), "an inverted side becomes 0.3 of the true one"


def test_detections_belong_to_the_person_they_overlap_most_in_their_own_image():
    boxes = torch.tensor([[0.0, 0, 100, 100], [60.0, 0, 160, 100], [0.0, 0, 100, 100]])
    images = torch.tensor([4, 4, 9])
    found = torch.tensor([[70.0, 0, 160, 100], [10.0, -10, 100, 100], [300.0, 300, 400, 400], [0.0, 0, 110, 100]])
    offsets, people = match(boxes, images, found, torch.tensor([4, 4, 4, 9]))
    by_person = {int(p): o.tolist() for p, o in zip(people, offsets, strict=True)}
    assert by_person[1] == pytest.approx([0.1, 0, 0, 0])
    assert by_person[0] == pytest.approx([0.1, -0.1, 0, 0])
    assert by_person[2] == pytest.approx([0, 0, 0.1, 0])
    assert len(people) == 3
    nothing, nobody = match(boxes, images, found, torch.tensor([1, 1, 1, 1]))
    assert nothing.shape == (0, 4)
    assert nobody.shape == (0,)


def test_coco_has_a_torso_too():
    poses = torch.rand(3, COCO17.size, 2)
    aligned, whole = align(poses, torch.ones(3, COCO17.size, dtype=torch.bool), COCO17)
    assert whole.all()
    assert aligned.isfinite().all()
