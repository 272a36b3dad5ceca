import math

import pytest
import torch
from torch import nn

from pose.layers.weights import initialise
from pose.systems.alexnet import alexnet_features


@pytest.mark.parametrize(
    ("layer", "overlapping", "std"),
    [
        (nn.Conv2d(32, 64, 3), False, math.sqrt(2 / (9 * 32))),
        (nn.Conv2d(32, 64, 3), True, math.sqrt(1 / (9 * 32))),
        (nn.Linear(500, 300), False, math.sqrt(1 / 500)),
    ],
)
def test_weights_have_the_stated_deviation_and_biases_are_zero(layer, overlapping, std):
    torch.manual_seed(0)
    initialise(layer, overlapping_pools=overlapping)
    assert layer.weight.std().item() == pytest.approx(std, rel=0.03)
    assert not layer.bias.any()


def test_signal_survives_twenty_convolutions():
    torch.manual_seed(0)
    layers = [layer for _ in range(20) for layer in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())]
    trunk = nn.Sequential(*layers)
    initialise(trunk)
    with torch.no_grad():
        power = trunk(torch.randn(2, 32, 24, 24)).square().mean().item()
    assert 0.02 < power < 20


def test_overlapping_pools_do_not_blow_the_signal_up():
    torch.manual_seed(0)
    trunk = alexnet_features((32, 64, 96, 96, 64), stride=2, batch_norm=False)
    smooth = nn.functional.interpolate(torch.randn(4, 3, 12, 12), size=(96, 96), mode="bilinear") * 1.6
    with torch.no_grad():
        power = trunk(smooth).square().mean().item()
    assert 0.05 < power < 5
