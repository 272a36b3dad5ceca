"""ResNet trunks (He et al., CVPR 2016) without pooling and classifier, under the names of torchvision's.

Bottlenecks have their stride in the 3x3 convolution, as torchvision's and most later releases' have. Convolutions
carry no bias: batch normalisation follows each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from pose.layers.weights import initialise, load_strictly

Depth = Literal[18, 34, 50, 101, 152]
STRIDE = 32
"""Input pixels per cell of the last map."""
PARTS = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
"""The modules of the trunk that have weights."""
_BLOCKS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class Basic(nn.Module):
    """Two 3x3 convolutions and what comes in: [B, inputs, H, W] to [B, width, H / stride, W / stride]."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        inner = self.relu(self.bn1(self.conv1(features)))
        return self.relu(self.bn2(self.conv2(inner)) + self.downsample(features))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and what comes in: [B, inputs, H, W] to [B, 4 width, H / stride, W / stride]."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width * self.expansion, stride)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        inner = self.relu(self.bn1(self.conv1(features)))
        inner = self.relu(self.bn2(self.conv2(inner)))
        return self.relu(self.bn3(self.conv3(inner)) + self.downsample(features))


class ResNet(nn.Module):
    """[B, 3, H, W] to [B, channels, H / 32, W / 32], rounded up.

    `width`: channels of the first of the four layers, each of which has twice those of the one before; 64 in the paper.
    `channels` is 8 width or, from 50 layers on, 32 width.
    """

    def __init__(self, depth: Depth, width: int = 64) -> None:
        super().__init__()
        block = Basic if depth < 50 else Bottleneck
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.channels = width
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            self._layer(block, width * 2**index, count, stride=1 if index == 0 else 2)
            for index, count in enumerate(_BLOCKS[depth])
        )
        initialise(self)

    @property
    def trunk(self) -> list[nn.Module]:
        """All modules of the trunk that have weights."""
        return [getattr(self, name) for name in PARTS]

    def features(self, images: Tensor) -> Tensor:
        """The last map of [B, 3, H, W]; see the class."""
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(features))))

    def forward(self, images: Tensor) -> Tensor:
        """The last map; see the class."""
        return self.features(images)

    def _layer(self, block: type[Basic] | type[Bottleneck], width: int, count: int, stride: int) -> nn.Sequential:
        blocks: list[nn.Module] = []
        for index in range(count):
            blocks.append(block(self.channels, width, stride if index == 0 else 1))
            self.channels = width * block.expansion
        return nn.Sequential(*blocks)


def load_imagenet_resnet(trunk: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Takes a torchvision ResNet's weights into a trunk of its names; the 1000-class `fc` has no counterpart here.

    Where a normalisation is followed by something of our own (squeeze and excitation), that keeps its weights.
    Raises TrainingError naming missing, unexpected and wrongly shaped tensors.
    """
    shared = nn.ModuleDict({name: getattr(trunk, name) for name in PARTS})
    own = shared.state_dict()
    followed = {name for name, module in shared.named_modules() if isinstance(module, nn.Sequential) and "bn" in name}
    weights = {key: own[key] for key in own if any(key.startswith(f"{name}.1.") for name in followed)}
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        if not key.startswith("fc."):
            weights[f"{layer}.0.{kind}" if layer in followed else key] = value
    load_strictly(shared, weights, "torchvision's ResNet weights")


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """What comes in, in the shape of what goes out."""
    if inputs == outputs and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
