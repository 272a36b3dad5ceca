"""VGG trunks (Simonyan & Zisserman 2015, configurations D and E), in the order of torchvision's `features`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from pose.errors import ConfigError
from pose.layers.convolution import conv_relu
from pose.layers.weights import initialise, load_strictly

VGG16_BLOCKS = (2, 2, 3, 3, 3)
"""3x3 convolutions before each of the five poolings, configuration D."""
VGG19_BLOCKS = (2, 2, 4, 4, 4)
"""The same for configuration E."""
VGG_STRIDE = 32
"""Five poolings by two: the smallest input side, and input pixels per cell of the last map."""


def vgg_features(blocks: Sequence[int], channels: Sequence[int], *, batch_norm: bool) -> nn.Sequential:
    """[B, 3, S, S] to [B, channels[-1], S // 32, S // 32]; one entry of `channels` per block."""
    layers: list[nn.Module] = []
    width = 3
    for depth, channel in zip(blocks, channels, strict=True):
        for _ in range(depth):
            layers += conv_relu(width, channel, 3, batch_norm=batch_norm)
            width = channel
        layers.append(nn.MaxPool2d(2))
    features = nn.Sequential(*layers)
    initialise(features)
    return features


def survives_poolings(input_size: tuple[int, int], key: str) -> None:
    """Raises ConfigError naming `key` where nothing would be left of the input after five poolings."""
    if min(input_size) < VGG_STRIDE:
        raise ConfigError(f"{key} is {input_size}, but the five poolings of a VGG need at least {VGG_STRIDE} px")


def cells(input_size: tuple[int, int]) -> int:
    """Cells of the last map for an input of this width and height."""
    return (input_size[0] // VGG_STRIDE) * (input_size[1] // VGG_STRIDE)


def load_imagenet_features(features: nn.Sequential, state: Mapping[str, Tensor]) -> None:
    """Takes `features.*` of a torchvision VGG checkpoint; its 1000-class `classifier.*` has no counterpart here.

    torchvision's weights expect RGB in [0, 1], normalised by the ImageNet mean and deviation.
    Raises TrainingError naming missing, unexpected and wrongly shaped tensors.
    """
    prefix = "features."
    trunk = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    load_strictly(features, trunk, "torchvision VGG weights (features.*)")
