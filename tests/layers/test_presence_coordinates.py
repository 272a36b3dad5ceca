import math

import numpy as np
import pytest
import torch

from pose.data.batch import Batch
from pose.layers.presence_coordinates import PresenceCoordinates, coordinates_loss, presence_loss

JOINTS, WIDTH, HEIGHT = 14, 40, 20


def batch(people: int, labelled: np.ndarray, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    keypoints = rng.uniform(0, [WIDTH, HEIGHT], (people, JOINTS, 2)).astype(np.float32)
    presence = rng.integers(0, 2, (people, JOINTS)).astype(np.float32)
    return Batch(
        images=torch.zeros(people, 3, HEIGHT, WIDTH),
        keypoints=torch.from_numpy(keypoints),
        labelled=torch.from_numpy(labelled),
        presence=torch.from_numpy(presence),
        to_original=torch.zeros(people, 2, 3),
        sample=torch.arange(people),
        image_ids=torch.arange(people),
        image_sizes=torch.zeros(people, 2),
        boxes=torch.zeros(people, 4),
    )


def oracle(coordinates: np.ndarray, truth: Batch) -> float:
    """The definition, one coordinate at a time."""
    total, count = 0.0, 0
    for person in range(len(truth)):
        for joint in range(JOINTS):
            if truth.labelled[person, joint]:
                for axis, side in enumerate((WIDTH, HEIGHT)):
                    wanted = float(truth.keypoints[person, joint, axis]) / side
                    total += (float(coordinates[person, joint, axis]) - wanted) ** 2
                    count += 1
    return total / count


def test_coordinates_loss_is_the_mean_over_labelled_coordinates_of_the_batch():
    rng = np.random.default_rng(3)
    labelled = rng.random((5, JOINTS)) < 0.6
    labelled[0] = False
    truth = batch(5, labelled)
    coordinates = rng.normal(0.5, 0.3, (5, JOINTS, 2)).astype(np.float32)
    loss = coordinates_loss(torch.from_numpy(coordinates), truth)
    assert loss.item() == pytest.approx(oracle(coordinates, truth), rel=1e-5)


@pytest.mark.parametrize("junk", [-1e6, math.nan, math.inf])
def test_what_unlabelled_joints_hold_reaches_neither_loss_nor_gradient(junk: float):
    labelled = np.random.default_rng(4).random((3, JOINTS)) < 0.5
    clean, dirty = batch(3, labelled), batch(3, labelled)
    dirty.keypoints[~dirty.labelled] = junk
    losses, gradients = [], []
    for truth in (clean, dirty):
        coordinates = torch.full((3, JOINTS, 2), 0.25, requires_grad=True)
        loss = coordinates_loss(coordinates, truth)
        loss.backward()
        losses.append(loss.item())
        gradients.append(coordinates.grad)
    assert losses[0] == losses[1]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert (gradients[1][~dirty.labelled] == 0).all()
    assert (gradients[1][dirty.labelled] != 0).all()


def test_no_labelled_joint_gives_zero_with_a_gradient():
    coordinates = torch.rand(2, JOINTS, 2, requires_grad=True)
    loss = coordinates_loss(coordinates, batch(2, np.zeros((2, JOINTS), bool)))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(coordinates.grad, torch.zeros_like(coordinates))


def test_presence_loss_is_the_mean_sigmoid_cross_entropy():
    logits = np.random.default_rng(5).normal(0, 3, (4, JOINTS))
    truth = batch(4, np.ones((4, JOINTS), bool))
    flags = truth.presence.numpy().astype(np.float64)
    probability = 1 / (1 + np.exp(-logits))
    wanted = -(flags * np.log(probability) + (1 - flags) * np.log(1 - probability)).mean()
    assert presence_loss(torch.from_numpy(logits), truth).item() == pytest.approx(wanted, rel=1e-5)


def test_losses_of_bfloat16_outputs_are_float32():
    truth = batch(2, np.ones((2, JOINTS), bool))
    assert presence_loss(torch.zeros(2, JOINTS, dtype=torch.bfloat16), truth).dtype == torch.float32
    assert coordinates_loss(torch.zeros(2, JOINTS, 2, dtype=torch.bfloat16), truth).dtype == torch.float32


def test_training_starts_at_the_centre_of_the_image_undecided():
    torch.manual_seed(0)
    network = PresenceCoordinates(torch.nn.Sequential(torch.nn.Flatten()), 300, [32, 16], [16], JOINTS, 0.5).eval()
    outputs = network(torch.randn(6, 3, 10, 10))
    assert outputs["coordinates"].shape == (6, JOINTS, 2)
    torch.testing.assert_close(outputs["coordinates"], torch.full((6, JOINTS, 2), 0.5), rtol=0, atol=0.05)
    assert outputs["presence"].sigmoid().sub(0.5).abs().max() < 0.1


def test_heads_branch_at_the_first_layer_and_the_coordinate_head_may_have_any_depth():
    network = PresenceCoordinates(torch.nn.Sequential(), 12, [8, 4], [6, 5], JOINTS, 0.5)
    widths = [m.out_features for m in network.coordinates if isinstance(m, torch.nn.Linear)]
    assert widths == [6, 5, 28]
    assert [m.out_features for m in network.presence if isinstance(m, torch.nn.Linear)] == [4, 14]
    assert network.coordinates[1].in_features == network.presence[1].in_features == 8
    shallow = PresenceCoordinates(torch.nn.Sequential(), 12, [8], [], JOINTS, 0.5)
    assert [m.out_features for m in shallow.coordinates if isinstance(m, torch.nn.Linear)] == [28]
