"""The network of YOLOv5 with four levels ("P6"), its outputs widened to joints: what KAPAO is built on.

focus 2 - conv s2 - C3 - conv s2 - C3 - conv s2 - C3 - conv s2 - C3 - conv s2 - SPP - C3, at strides 2 to 64;
three C3 on the way up, three on the way down; heads at strides 8, 16, 32 and 64 with three anchors each.

Layers lie in one list `model`, numbered from 0 to 33 as in the releases, so that their state_dicts fit.
Sources: McNally et al., ECCV 2022 (KAPAO, section 3); the layer table of YOLOv5 5.0/6.0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pose.layers.normalise import Normalise

STRIDES = (8, 16, 32, 64)
"""Pixels per cell of each level."""
ANCHORS = 3
"""Per level."""
COMMON = 5
"""Outputs before the classes: x, y, w, h, objectness."""
EPS, MOMENTUM = 1e-3, 0.03
"""Of batch normalisation."""
CHANNEL_STEP = 8
"""Widths are multiples of this."""
REFERENCE_SIDE = 640
"""px: objectness is balanced for inputs of this side."""
OBJECTS_PER_IMAGE, ALL_CLASSES = 8, 0.6
"""What the heads expect at first: so many objects in an image of that side, and the sum of all classes."""


class Conv(nn.Module):
    """Convolution, batch normalisation, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=EPS, momentum=MOMENTUM)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """1x1, then 3x3, added to what came in where there is a shortcut."""

    def __init__(self, channels: int, *, shortcut: bool) -> None:
        super().__init__()
        self.cv1 = Conv(channels, channels)
        self.cv2 = Conv(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C3(nn.Module):
    """Two 1x1 convolutions to half the width, bottlenecks on one of them, both together through a third."""

    def __init__(self, inputs: int, outputs: int, count: int, *, shortcut: bool = True) -> None:
        super().__init__()
        hidden = outputs // 2
        self.cv1 = Conv(inputs, hidden)
        self.cv2 = Conv(inputs, hidden)
        self.cv3 = Conv(2 * hidden, outputs)
        self.m = nn.Sequential(*(Bottleneck(hidden, shortcut=shortcut) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], dim=1))


class Spp(nn.Module):
    """Maxima over 3x3, 5x5 and 7x7 cells beside the cells themselves."""

    KERNELS = (3, 5, 7)

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        hidden = inputs // 2
        self.cv1 = Conv(inputs, hidden)
        self.cv2 = Conv(hidden * (1 + len(self.KERNELS)), outputs)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.cv1(x)
        return self.cv2(torch.cat([x, *(F.max_pool2d(x, k, 1, k // 2) for k in self.KERNELS)], dim=1))


class Focus(nn.Module):
    """Every second pixel: four images of half the side as channels, then a 3x3 convolution."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = Conv(12, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        parts = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.conv(torch.cat(parts, dim=1))


class Detect(nn.Module):
    """1x1 convolutions to raw outputs [B, ANCHORS, h, w, outputs] per level, and what decodes them.

    anchors: [4, ANCHORS, 2], width and height in px.
    """

    anchors: Tensor
    anchor_grid: Tensor

    def __init__(self, channels: Sequence[int], classes: int, joints: int, anchors: Tensor) -> None:
        super().__init__()
        self.classes, self.outputs = classes, COMMON + classes + 2 * joints
        strides = torch.tensor(STRIDES, dtype=torch.float32)[:, None, None]
        # Kept with the weights and twice, in cells and in px, as in the releases.
        self.register_buffer("anchors", anchors / strides)
        self.register_buffer("anchor_grid", anchors.reshape(len(STRIDES), 1, ANCHORS, 1, 1, 2).clone())
        self.m = nn.ModuleList(nn.Conv2d(width, ANCHORS * self.outputs, 1) for width in channels)
        for layer, stride in zip(self.m, STRIDES, strict=True):
            self._expect_few(layer, stride)

    @torch.no_grad()
    def _expect_few(self, layer: Any, stride: int) -> None:
        """Biases such that the first answer is about as many objects as there are (Lin et al. 2017, section 3.3)."""
        bias = layer.bias.view(ANCHORS, -1)
        bias[:, COMMON - 1] += math.log(OBJECTS_PER_IMAGE / (REFERENCE_SIDE / stride) ** 2)
        # One class more than there are, a little less than one: the releases' own way to avoid log(x / 0).
        bias[:, COMMON : COMMON + self.classes] += math.log(ALL_CLASSES / (self.classes - 0.99))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """See the class."""
        levels = [layer(x) for layer, x in zip(self.m, features, strict=True)]
        return [x.unflatten(1, (ANCHORS, -1)).permute(0, 1, 3, 4, 2) for x in levels]

    def objects(self, levels: Sequence[Tensor]) -> Tensor:
        """[B, N, outputs]: x, y, w, h in px, objectness and classes in [0, 1], joints in px; of all cells and levels.

        x = (2s - 0.5 + column) stride, w = (2s)^2 anchor, joint = (4s - 2) anchor + column stride for a sigmoid s
        (KAPAO, equation 3; joints count from the cell's corner, not its middle).
        """
        return torch.cat([self._decode(raw, i).flatten(1, 3) for i, raw in enumerate(levels)], dim=1)

    def _decode(self, raw: Tensor, level: int) -> Tensor:
        share, stride = raw.float().sigmoid(), STRIDES[level]
        height, width = share.shape[2:4]
        columns = torch.arange(width, dtype=share.dtype, device=share.device).expand(height, width)
        rows = torch.arange(height, dtype=share.dtype, device=share.device)[:, None].expand(height, width)
        grid = torch.stack([columns, rows], dim=-1)
        anchor = self.anchor_grid[level]
        centre = (share[..., :2] * 2 - 0.5 + grid) * stride
        extent = (share[..., 2:4] * 2) ** 2 * anchor
        first = COMMON + self.classes
        joints = (share[..., first:].unflatten(-1, (-1, 2)) * 4 - 2) * anchor[..., None, :]
        joints = joints + (grid * stride)[:, :, None]
        return torch.cat([centre, extent, share[..., 4:first], joints.flatten(-2)], dim=-1)


class Yolo(nn.Module):
    """[B, 3, H, W] normalised float, sides multiples of 64, to a dict.

    `levels`: raw outputs of the image as it is, [B, ANCHORS, h, w, 5 + classes + 2 joints] by level. In evaluation
    mode also `objects`, [B, N, 5 + classes + 2 joints] as `Detect.objects` has them, from every `scales` and `flips`.

    depth, width: multiples of the large network's (S 0.33, 0.5; M 0.67, 0.75; L 1, 1). mirror: [K], the joint that
    each becomes in a mirrored image. Class 0 is a person, class 1 + k joint k.
    """

    mirrored: Tensor
    HEADS = (23, 26, 29, 32)
    """Layers that the outputs are made from, by level."""
    NECK = 12
    """The first layer after the trunk."""

    def __init__(
        self,
        depth: float,
        width: float,
        mirror: Sequence[int],
        anchors: Tensor,
        scales: Sequence[float] = (1.0,),
        flips: Sequence[bool] = (False,),
    ) -> None:
        super().__init__()
        self.views = [(scale, flip) for scale, flip in zip(scales, flips, strict=True)]
        self.normalise = Normalise()
        joints = len(mirror)
        order = _mirrored_outputs(mirror)
        self.register_buffer("mirrored", order, persistent=False)
        c64, c128, c256, c512, c768, c1024 = (
            math.ceil(channels * width / CHANNEL_STEP) * CHANNEL_STEP for channels in (64, 128, 256, 512, 768, 1024)
        )
        three, nine = max(1, round(3 * depth)), max(1, round(9 * depth))
        up = nn.Upsample(scale_factor=2, mode="nearest")
        detect = Detect((c256, c512, c768, c1024), 1 + joints, joints, anchors)
        self.model = nn.ModuleList(
            [
                Focus(c64), Conv(c64, c128, 3, 2), C3(c128, c128, three),
                Conv(c128, c256, 3, 2), C3(c256, c256, nine),
                Conv(c256, c512, 3, 2), C3(c512, c512, nine),
                Conv(c512, c768, 3, 2), C3(c768, c768, three),
                Conv(c768, c1024, 3, 2), Spp(c1024, c1024), C3(c1024, c1024, three, shortcut=False),
                Conv(c1024, c768), up, Join(8), C3(2 * c768, c768, three, shortcut=False),
                Conv(c768, c512), up, Join(6), C3(2 * c512, c512, three, shortcut=False),
                Conv(c512, c256), up, Join(4), C3(2 * c256, c256, three, shortcut=False),
                Conv(c256, c256, 3, 2), Join(20), C3(2 * c256, c512, three, shortcut=False),
                Conv(c512, c512, 3, 2), Join(16), C3(2 * c512, c768, three, shortcut=False),
                Conv(c768, c768, 3, 2), Join(12), C3(2 * c768, c1024, three, shortcut=False),
                detect,
            ]
        )  # fmt: skip

    @property
    def detect(self) -> Detect:
        """The last layer."""
        last = self.model[-1]
        assert isinstance(last, Detect)
        return last

    def forward(self, images: Tensor) -> dict[str, Any]:
        """See the class."""
        # The releases see colours in [0, 1].
        colours = (images / self.normalise.inverse_std + self.normalise.mean) / 255
        # Training sets the parts to train, not the whole.
        if any(part.training for part in self.modules()):
            return {"levels": self.levels(colours)}
        plain = self.levels(colours)
        objects = [
            self.detect.objects(plain) if view == (1.0, False) else self._seen(colours, *view) for view in self.views
        ]
        return {"levels": plain, "objects": torch.cat(objects, dim=1)}

    def levels(self, colours: Tensor) -> list[Tensor]:
        """Raw outputs by level for colours in [0, 1]."""
        outputs: list[Tensor] = []
        x = colours
        for layer in self.model[:-1]:
            x = torch.cat([x, outputs[layer.other]], dim=1) if isinstance(layer, Join) else layer(x)
            outputs.append(x)
        return self.detect([outputs[i] for i in self.HEADS])

    def _seen(self, colours: Tensor, scale: float, flip: bool) -> Tensor:
        """The objects found in the images scaled, flipped or both, in pixels of the images as they are."""
        height, width = colours.shape[-2:]
        size = (round(height * scale), round(width * scale))
        seen = colours.flip(-1) if flip else colours
        if scale != 1:
            seen = F.interpolate(seen, size, mode="bilinear", align_corners=False)
            down, right = (-side % STRIDES[-1] for side in size)
            # The mean colour around it, as everywhere here.
            seen = seen - self.normalise.mean / 255
            seen = F.pad(seen, (0, right, 0, down)) + self.normalise.mean / 255
        objects = self.detect.objects(self.levels(seen))
        # By both factors, which differ a little where the scaled sides are not whole.
        factors = objects.new_tensor([width / size[1], height / size[0]])
        first = COMMON + self.detect.classes
        lengths = objects[..., :4].unflatten(-1, (2, 2)) * factors
        joints = objects[..., first:].unflatten(-1, (-1, 2)) * factors
        if flip:
            lengths = torch.cat([_reflected(lengths[..., :1, :], width), lengths[..., 1:, :]], dim=-2)
            joints = _reflected(joints, width)
        objects = torch.cat([lengths.flatten(-2), objects[..., 4:first], joints.flatten(-2)], dim=-1)
        return objects[..., self.mirrored] if flip else objects


class Join(nn.Module):
    """Channels of the layer before and of layer `other`; the list's owner does it."""

    def __init__(self, other: int) -> None:
        super().__init__()
        self.other = other


def _reflected(points: Tensor, width: int) -> Tensor:
    """[..., 2] points of a mirrored image."""
    return torch.stack([width - points[..., 0], points[..., 1]], dim=-1)


def _mirrored_outputs(mirror: Sequence[int]) -> Tensor:
    """[5 + 1 + K + 2 K] int64: output i of a mirrored image is output order[i] of the original."""
    joints = torch.tensor(list(mirror), dtype=torch.int64)
    person = COMMON + 1
    first = person + len(joints)
    places = first + 2 * joints[:, None] + torch.arange(2)
    return torch.cat([torch.arange(person), person + joints, places.flatten()])
