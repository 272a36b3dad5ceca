"""OpenPose's networks, which refine part affinity fields and confidence maps stage by stage.

Names of weights are those of the public PyTorch code: of its VGG-19 network for TwoBranch, of its network with dense
blocks for FieldsFirst. Every network gives {"fields": [B, S, 2L, h, w], "heats": [B, T, K + 1, h, w]}, all stages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pose.layers.convolution import conv_relu
from pose.layers.paf import Layout
from pose.layers.weights import initialise

DEPTHS = (2, 2, 4, 2)
"""3x3 convolutions of VGG-19's first blocks, a pooling between each two."""
OUTPUT_STD = 0.01
"""Of the first weights of layers that make maps: maps begin near nothing."""

Maps = tuple[list[Tensor], list[Tensor]]
"""Fields and heats, one per stage."""


class Stages(nn.Module):
    """Averages over mirrored and resized images in evaluation; a network gives `maps`."""

    joint_mirror: Tensor
    field_mirror: Tensor
    field_signs: Tensor

    def __init__(self, layout: Layout, scales: Sequence[float], flip_test: bool, stride: int) -> None:
        super().__init__()
        self.scales, self.flip_test, self.stride = tuple(scales), flip_test, stride
        order, signs = layout.field_mirror if flip_test else (np.zeros(0, np.int64), np.zeros(0, np.float32))
        self.register_buffer("joint_mirror", torch.tensor(layout.joint_mirror.tolist()), persistent=False)
        self.register_buffer("field_mirror", torch.tensor(order.tolist(), dtype=torch.int64), persistent=False)
        self.register_buffer("field_signs", torch.tensor(signs.tolist()), persistent=False)

    def maps(self, images: Tensor) -> Maps:
        """Fields [B, 2L, h, w] and heats [B, K + 1, h, w] of every stage."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W], sides multiples of the stride; see the module."""
        if any(part.training for part in self.modules()):
            return _stacked(self.maps(images))
        views = [
            self._view(images, scale, flip) for scale in self.scales for flip in (False, True)[: 1 + self.flip_test]
        ]
        return {name: torch.stack([view[name] for view in views]).mean(dim=0) for name in views[0]}

    def _view(self, images: Tensor, scale: float, flip: bool) -> dict[str, Tensor]:
        """What a resized, mirrored image says, back on the image's own cells."""
        cells = (images.shape[-2] // self.stride, images.shape[-1] // self.stride)
        seen = images
        if scale != 1:
            size = [max(1, round(n * scale)) * self.stride for n in cells]
            seen = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=scale < 1)
        outputs = _stacked(self.maps(seen.flip(3) if flip else seen))
        fields, heats = outputs["fields"], outputs["heats"]
        if flip:
            fields = fields.flip(4)[:, :, self.field_mirror] * self.field_signs[:, None, None]
            heats = heats.flip(4)[:, :, self.joint_mirror]
        if scale != 1:
            fields, heats = _resized(fields, cells), _resized(heats, cells)
        return {"fields": fields, "heats": heats}


class TwoBranch(Stages):
    """Trunk, then stages with a branch for fields and one for heats; both see the trunk and both maps before.

    trunk: channels of VGG-19's blocks; features: of the two convolutions after it; first: of stage 1's 3x3 and 1x1
    convolutions; later: of all others. `shared`: stages from the second on are one pair of branches, used again.
    """

    def __init__(
        self,
        layout: Layout,
        trunk: Sequence[int],
        features: tuple[int, int],
        first: tuple[int, int],
        later: int,
        kernel: int,
        stages: int,
        *,
        shared: bool,
        batch_norm: bool,
        scales: Sequence[float],
        flip_test: bool,
    ) -> None:
        super().__init__(layout, scales, flip_test, 2 ** (len(trunk) - 1))
        self.stages, self.shared = stages, shared
        layers = vgg(trunk, batch_norm)
        self.trunk_layers = len(layers)
        for inputs, outputs in zip((trunk[-1], features[0]), features, strict=True):
            layers += conv_relu(inputs, outputs, 3, batch_norm=batch_norm)
        self.model0 = nn.Sequential(*layers)
        channels = (2 * len(layout.limbs), layout.joints.size + 1)
        seen = features[1] + sum(channels)
        for branch, out in enumerate(channels, start=1):
            head = _branch(features[1], [(first[0], 3)] * 3 + [(first[1], 1)], out, batch_norm)
            setattr(self, f"model1_{branch}", head)
            for stage in range(2, min(stages, 2) + 1 if shared else stages + 1):
                head = _branch(seen, [(later, kernel)] * 5 + [(later, 1)], out, batch_norm)
                setattr(self, f"model{stage}_{branch}", head)
        _first_weights(self)

    @property
    def trunk(self) -> nn.Sequential:
        """The part that VGG-19 has too."""
        return self.model0[: self.trunk_layers]

    @property
    def heads(self) -> list[nn.Module]:
        """Everything else."""
        return [self.model0[self.trunk_layers :], *(m for name, m in self.named_children() if name != "model0")]

    def maps(self, images: Tensor) -> Maps:
        """See Stages."""
        features = self.model0(images)
        fields: list[Tensor] = []
        heats: list[Tensor] = []
        for stage in range(1, self.stages + 1):
            seen = torch.cat([fields[-1], heats[-1], features], dim=1) if fields else features
            number = min(stage, 2) if self.shared else stage
            fields.append(getattr(self, f"model{number}_1")(seen))
            heats.append(getattr(self, f"model{number}_2")(seen))
        return fields, heats


class FieldsFirst(Stages):
    """Trunk, then stages for fields alone, then stages for heats that see the last fields; dense 3x3 blocks.

    first, later: channels of a stage's 3x3 convolutions and of its 1x1 convolution, for the first stage of a kind and
    for the others. Batch normalisation, where asked for, is the trunk's alone.
    """

    def __init__(
        self,
        layout: Layout,
        trunk: Sequence[int],
        features: tuple[int, int],
        first: tuple[int, int],
        later: tuple[int, int],
        field_stages: int,
        heat_stages: int,
        *,
        batch_norm: bool,
        scales: Sequence[float],
        flip_test: bool,
    ) -> None:
        super().__init__(layout, scales, flip_test, 2 ** (len(trunk) - 1))
        layers = vgg(trunk, batch_norm)
        self.trunk_layers = len(layers)
        # The last of VGG's convolutions and the two after it have learned slopes.
        layers[-1] = nn.PReLU(trunk[-1])
        for inputs, outputs in zip((trunk[-1], features[0]), features, strict=True):
            layers += [*conv_relu(inputs, outputs, 3, batch_norm=batch_norm)[:-1], nn.PReLU(outputs)]
        self.feature_extractor = nn.Sequential(*layers)
        fields, heats, seen = 2 * len(layout.limbs), layout.joints.size + 1, features[1]
        self.l2_stages = nn.ModuleList(
            DenseStage(seen + fields * (stage > 0), fields, *(later if stage else first))
            for stage in range(field_stages)
        )
        self.l1_stages = nn.ModuleList(
            DenseStage(seen + fields + heats * (stage > 0), heats, *(later if stage else first))
            for stage in range(heat_stages)
        )
        _first_weights(self)

    @property
    def trunk(self) -> nn.Sequential:
        """The part that VGG-19 has too."""
        return self.feature_extractor[: self.trunk_layers]

    @property
    def heads(self) -> list[nn.Module]:
        """Everything else."""
        return [self.feature_extractor[self.trunk_layers :], self.l2_stages, self.l1_stages]

    def maps(self, images: Tensor) -> Maps:
        """See Stages."""
        features = self.feature_extractor(images)
        fields: list[Tensor] = []
        for stage in self.l2_stages:
            fields.append(stage(torch.cat([features, *fields[-1:]], dim=1)))
        heats: list[Tensor] = []
        for stage in self.l1_stages:
            heats.append(stage(torch.cat([features, *heats[-1:], fields[-1]], dim=1)))
        return fields, heats


class DenseStage(nn.Module):
    """Five units of three 3x3 convolutions each, whose outputs are put together; then two 1x1 convolutions."""

    UNITS, STEPS = 5, 3

    def __init__(self, inputs: int, outputs: int, inner: int, last: int) -> None:
        super().__init__()
        for unit in range(self.UNITS):
            for step in range(self.STEPS):
                before = inner if step else (inner * self.STEPS if unit else inputs)
                setattr(self, f"Mconv{unit + 1}_{step}", Slope(before, inner, 3))
        self.Mconv6 = Slope(inner * self.STEPS, last, 1)
        self.Mconv7 = nn.Conv2d(last, outputs, 1)

    def forward(self, seen: Tensor) -> Tensor:
        """[B, inputs, h, w] to [B, outputs, h, w]."""
        for unit in range(self.UNITS):
            parts: list[Tensor] = []
            for step in range(self.STEPS):
                seen = getattr(self, f"Mconv{unit + 1}_{step}")(seen)
                parts.append(seen)
            seen = torch.cat(parts, dim=1)
        return self.Mconv7(self.Mconv6(seen))


class Slope(nn.Module):
    """Convolution and PReLU with a slope per channel; the size stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.Mconv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.MPrelu = nn.PReLU(outputs)

    def forward(self, seen: Tensor) -> Tensor:
        """See the class."""
        return self.MPrelu(self.Mconv(seen))


def vgg(channels: Sequence[int], batch_norm: bool) -> list[nn.Module]:
    """The first blocks of VGG-19, of these widths; the last one is not pooled, so that n blocks have stride 2^(n-1)."""
    layers: list[nn.Module] = []
    inputs = 3
    for block, (depth, outputs) in enumerate(zip(DEPTHS, channels, strict=False)):
        layers += [nn.MaxPool2d(2)] if block else []
        for _ in range(depth):
            layers += conv_relu(inputs, outputs, 3, batch_norm=batch_norm)
            inputs = outputs
    return layers


def _branch(inputs: int, steps: Sequence[tuple[int, int]], outputs: int, batch_norm: bool) -> nn.Sequential:
    """Convolutions of (channels, kernel) with ReLU, then one 1x1 to the maps."""
    layers: list[nn.Module] = []
    for channels, kernel in steps:
        layers += conv_relu(inputs, channels, kernel, batch_norm=batch_norm)
        inputs = channels
    return nn.Sequential(*layers, nn.Conv2d(inputs, outputs, 1))


def _first_weights(network: Stages) -> None:
    """He's weights, with which these networks train from scratch (the paper starts from ImageNet's); maps near 0."""
    initialise(network)
    for name, module in network.named_modules():
        makes_maps = isinstance(module, nn.Sequential) and name.startswith("model") and name != "model0"
        layer = module[-1] if makes_maps else getattr(module, "Mconv7", None)
        if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:
            nn.init.normal_(layer.weight, std=OUTPUT_STD)


def _stacked(maps: Maps) -> dict[str, Tensor]:
    fields, heats = maps
    return {"fields": torch.stack(fields, dim=1), "heats": torch.stack(heats, dim=1)}


def _resized(maps: Tensor, cells: tuple[int, int]) -> Tensor:
    """[B, S, C, h, w] on other cells."""
    flat = F.interpolate(maps.flatten(0, 1), size=cells, mode="bicubic", align_corners=False)
    return flat.unflatten(0, maps.shape[:2])
