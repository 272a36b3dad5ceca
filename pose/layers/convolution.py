"""Convolution, optional batch normalisation, ReLU: the step that every trunk here is built of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from pose.layers.weights import initialise


def conv_relu(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int | None = None, batch_norm: bool = False
) -> list[nn.Module]:
    """[B, inputs, H, W] to [B, outputs, H', W']. Padding keeps the size (kernel // 2) unless given.

    The convolution keeps its bias under batch normalisation, as torchvision's VGG does, so that weights are
    interchangeable.
    """
    padding = kernel // 2 if padding is None else padding
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, kernel, stride, padding)]
    if batch_norm:
        layers.append(nn.BatchNorm2d(outputs))
    return [*layers, nn.ReLU(inplace=True)]


def conv_pool_features(channels: Sequence[int], kernel: int, *, batch_norm: bool) -> nn.Sequential:
    """[B, 3, S, S] to [B, channels[-1], S // 2^n, S // 2^n]: one convolution and one 2x2 max-pooling per width."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([3, *channels]):
        layers += [*conv_relu(inputs, outputs, kernel, batch_norm=batch_norm), nn.MaxPool2d(2)]
    features = nn.Sequential(*layers)
    initialise(features)
    return features
