"""DeeperCut's part detector: a ResNet at stride 16, deconvolutions to cells of 8 px, three kinds of maps.

conv7/2 - pool/2 - ResNet's layers, the fourth dilated - deconv3/2 to: scores of the kinds of joints, offsets from a
cell to its joint, offsets to all other joints of the same person. Scores are also asked for halfway through layer 3.

Source: Insafutdinov et al., ECCV 2016, and the authors' release. There a joint's cells are those within 17 px where
people are about 400 px high; here within that share of the person's box, so that people may have any size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pose.layers.pair_terms import Graph, PairTerms
from pose.layers.resnet import Depth, ResNet
from pose.skeleton import Skeleton

STRIDE = 8
"""Input pixels per cell."""
TRUNK_STRIDE = 16
REFINEMENT = 7.2801
"""px: the release's standard deviation of what `refinement` predicts."""
LEAST_RADIUS = 0.75 * STRIDE
"""px: every joint has a cell whose centre is this near."""
RARE = -4.0
"""Log-odds of a joint in a cell before training."""


class PartDetector(nn.Module):
    """[B, 3, H, W] to maps over cells, h = H / 8, w = W / 8.

    parts, intermediate [B, K, h, w] logits; scores [B, K, h, w] the calibrated parts; refinement [B, K, 2, h, w] in
    REFINEMENT px; offsets [B, P, 2, h, w] in standard deviations about the mean of each ordered pair.
    """

    def __init__(self, skeleton: Skeleton, depth: Depth, width: int, graph: Graph) -> None:
        super().__init__()
        self.trunk = dilated(ResNet(depth, width))
        self.terms = PairTerms(skeleton, graph)
        k, channels = skeleton.size, self.trunk.channels
        self.parts = _upsampling(channels, k, RARE)
        self.refinement = _upsampling(channels, 2 * k)
        self.offsets = _upsampling(channels, 4 * self.terms.pairs)
        self.halfway = len(self.trunk.layer3) // 2
        self.intermediate = _upsampling(channels // 2, k, RARE)
        self.calibration = Calibration(k)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See the class."""
        trunk = self.trunk
        features = trunk.layer2(trunk.layer1(trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(images))))))
        halfway = trunk.layer3[: self.halfway + 1](features)
        features = trunk.layer4(trunk.layer3[self.halfway + 1 :](halfway))
        parts = self.parts(features)
        return {
            "parts": parts,
            "scores": self.calibration(parts.detach()),
            "refinement": self.refinement(features).unflatten(1, (-1, 2)),
            "offsets": self.offsets(features).unflatten(1, (-1, 2)),
            "intermediate": self.intermediate(halfway),
        }


class Calibration(nn.Module):
    """Logits [B, K, h, w] to logits whose probabilities mean what they say: a factor and a shift per kind of joint."""

    def __init__(self, joints: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(joints, 1, 1))
        self.shift = nn.Parameter(torch.zeros(joints, 1, 1))

    def forward(self, logits: Tensor) -> Tensor:
        """See the class."""
        return logits * self.factor + self.shift


def dilated(trunk: ResNet) -> ResNet:
    """The trunk with its last layer at the stride of the one before and gaps in its 3x3 kernels; in place."""
    for module in trunk.layer4.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (2, 2)
    return trunk


def _upsampling(inputs: int, outputs: int, first: float = 0.0) -> nn.ConvTranspose2d:
    """[B, inputs, h, w] to [B, outputs, 2h, 2w], about `first` before training."""
    layer = nn.ConvTranspose2d(inputs, outputs, 3, 2, 1, output_padding=1)
    if layer.bias is not None and not layer.weight.is_meta:
        nn.init.normal_(layer.weight, std=0.001)
        nn.init.constant_(layer.bias, first)
    return layer


def centres(height: int, width: int, device: torch.device) -> Tensor:
    """[height, width, 2] input px of the cells' centres, x and y."""
    rows, columns = (torch.arange(n, dtype=torch.float32, device=device) + 0.5 for n in (height, width))
    return STRIDE * torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=2)


# ---------------------------------------------------------------- targets and losses


@dataclass(frozen=True)
class Targets:
    """What the maps of B images should say. M cells are near a joint."""

    near: Tensor
    """[B, K, h, w] bool."""
    weight: Tensor
    """[B, 1, h, w], the share of a cell that is not ignored; 1 near joints."""
    image: Tensor
    """[M] int64, with `part`, `row`, `column`: where `near` is true."""
    part: Tensor
    row: Tensor
    column: Tensor
    joints: Tensor
    """[M, K, 2] px from the cell's centre to the joints of the nearest person."""
    known: Tensor
    """[M, K] bool, which of these are labelled."""


def radii(boxes: Tensor, disc: float) -> Tensor:
    """[...] px: how far around a joint of people with these boxes [..., 4] cells count as near."""
    return ((boxes[..., 2:] - boxes[..., :2]).amax(dim=-1) * disc).clamp(min=LEAST_RADIUS)


def targets(
    keypoints: Tensor, labelled: Tensor, boxes: Tensor, ignored: Tensor, size: tuple[int, int], disc: float
) -> Targets:
    """keypoints [B, P, K, 2] px, labelled [B, P, K], boxes [B, P, 4], ignored [B, H', W'], size: cells (w, h)."""
    width, height = size
    grid = centres(height, width, keypoints.device)
    points = torch.where(labelled[..., None], keypoints.float(), torch.inf)
    # [B, P, K, h, w]; a joint without a position is infinitely far.
    across = (grid[0, :, 0] - points[..., 0, None]).square()
    down = (grid[:, 0, 1] - points[..., 1, None]).square()
    distance = (down[..., :, None] + across[..., None, :]).sqrt()
    distance = torch.where(distance <= radii(boxes, disc)[..., None, None, None], distance, torch.inf)
    least, person = distance.min(dim=1)
    near = least.isfinite()
    image, part, row, column = torch.nonzero(near, as_tuple=True)
    who = person[image, part, row, column]
    joints, known = keypoints[image, who].float(), labelled[image, who]
    joints = torch.where(known[..., None], joints - grid[row, column][:, None], 0.0)
    weight = 1 - F.interpolate(ignored[:, None].float(), size=(height, width), mode="area")
    return Targets(near, weight, image, part, row, column, joints, known)


def score_loss(logits: Tensor, target: Targets, foreground: float) -> Tensor:
    """Mean binary cross-entropy over all cells and kinds; cells near joints weigh 1 + foreground, ignored ones 0."""
    loss = F.binary_cross_entropy_with_logits(logits.float(), target.near.float(), reduction="none")
    weight = torch.where(target.near, 1 + foreground, target.weight)
    return (loss * weight).sum() / target.near[:, :1].numel() / target.near.shape[1]


def refinement_loss(maps: Tensor, target: Targets) -> Tensor:
    """Mean Huber loss of [B, K, 2, h, w] over the cells near joints; 0 where there are none."""
    t = target
    found = maps[t.image, t.part, :, t.row, t.column].float()
    wanted = t.joints[torch.arange(len(t.part), device=t.part.device), t.part] / REFINEMENT
    return F.huber_loss(found, wanted, reduction="sum") / max(1, found.numel())


def offset_loss(maps: Tensor, target: Targets, terms: PairTerms) -> Tensor:
    """Mean Huber loss of [B, P, 2, h, w] over the pairs of each cell's kind with labelled joints; 0 without any."""
    t = target
    pair = terms.ordered[t.part]
    cell, other = torch.nonzero((pair >= 0) & t.known, as_tuple=True)
    pair = pair[cell, other]
    found = maps[t.image[cell], pair, :, t.row[cell], t.column[cell]].float()
    wanted = (t.joints[cell, other] - terms.mean[pair]) / terms.deviation[pair]
    return F.huber_loss(found, wanted, reduction="sum") / max(1, found.numel())
