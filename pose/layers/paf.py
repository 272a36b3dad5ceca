"""Part affinity fields: which joints and limbs the maps of a skeleton have, how they mirror, and their target maps.

Source: Cao, Simon, Wei & Sheikh, CVPR 2017, sections 2.2 and 2.3. Positions on a map are continuous: cell (i, j) covers
[j, j+1) x [i, i+1) and its centre is at +0.5, for joints as for fields (the public training code draws fields about
the cells' corners, half a cell off their joints).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pose.errors import ConfigError
from pose.skeleton import COCO17, OPENPOSE18, Skeleton

SUPPORTING = {"openpose18": (("right_shoulder", "right_ear"), ("left_shoulder", "left_ear"))}
"""Limbs that only join what the others left apart, by skeleton; elsewhere those that close a loop."""
SHOULDERS = ("left_shoulder", "right_shoulder")


@dataclass(frozen=True)
class Layout:
    """What the channels are: one map per joint of `joints`, two per limb of it. People come and go as `people`."""

    people: Skeleton
    """The data set's."""
    joints: Skeleton
    """The maps': the same, but for COCO's seventeen joints, to which a neck is added."""

    @staticmethod
    def of(skeleton: Skeleton) -> Layout:
        """Raises ConfigError, naming the joints, where limbs leave some apart: nobody could be assembled."""
        layout = Layout(skeleton, OPENPOSE18 if skeleton.name == COCO17.name else skeleton)
        layout.assembly  # noqa: B018
        return layout

    @property
    def limbs(self) -> np.ndarray:
        """[L, 2] int64, from which joint to which the field of each limb points."""
        return self.joints.limb_indices.reshape(-1, 2)

    @cached_property
    def assembly(self) -> tuple[int, ...]:
        """The limbs in the order in which people are put together: first those of a tree, then those that close loops.

        Along the tree no two of a person's joints can be of one kind; the others may only join, never divide.
        """
        late = SUPPORTING.get(self.joints.name, ())
        tree, loops = [], [n for n, limb in enumerate(self.joints.limbs) if limb in late]
        part = list(range(self.joints.size))
        for n, (a, b) in enumerate(self.limbs.tolist()):
            if n in loops:
                continue
            if part[a] == part[b]:
                loops.append(n)
                continue
            tree.append(n)
            part = [part[a] if p == part[b] else p for p in part]
        largest = max(set(part), key=part.count)
        apart = [name for name, p in zip(self.joints.joints, part, strict=True) if p != largest]
        if apart:
            raise ConfigError(
                f"the limbs of skeleton {self.joints.name} do not reach {', '.join(apart)}: OpenPose puts people "
                "together along limbs, so that these joints would belong to nobody; add limbs that connect them"
            )
        return (*tree, *loops)

    @cached_property
    def joint_mirror(self) -> np.ndarray:
        """[K + 1] int64: the map of each joint, then of the background, in a mirrored image."""
        return np.append(self.joints.mirror, self.joints.size)

    @cached_property
    def field_mirror(self) -> tuple[np.ndarray, np.ndarray]:
        """[2L] int64, the channel that each is in a mirrored image, and [2L] float32, the sign it comes with.

        Raises ConfigError for a limb that the other side of the body lacks.
        """
        names, mirror = list(self.joints.limbs), self.joints.mirror
        order, signs = [], []
        for a, b in self.limbs.tolist():
            other = (self.joints.joints[mirror[a]], self.joints.joints[mirror[b]])
            along = other in names
            if not along and other[::-1] not in names:
                raise ConfigError(
                    f"skeleton {self.joints.name} has the limb {self.joints.joints[a]} - {self.joints.joints[b]} but "
                    f"not {other[0]} - {other[1]}; without it mirrored images have no fields, so add it"
                )
            limb = names.index(other if along else other[::-1])
            direction = 1.0 if along else -1.0
            order += [2 * limb, 2 * limb + 1]
            signs += [-direction, direction]
        return np.array(order, np.int64), np.array(signs, np.float32)

    # ------------------------------------------------------------ COCO's joints and the neck

    def to_maps(self, keypoints: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """People's joints [..., K, 2] and [..., K] as those of the maps; a neck needs both shoulders."""
        if self.joints is self.people:
            return keypoints, labelled
        left, right = (self.people.index(name) for name in SHOULDERS)
        neck = (keypoints[..., left, :] + keypoints[..., right, :]) / 2
        known = labelled[..., left] & labelled[..., right]
        every = torch.cat([keypoints, neck[..., None, :]], dim=-2)
        order = self._order.to(keypoints.device)
        return every[..., order, :], torch.cat([labelled, known[..., None]], dim=-1)[..., order]

    @property
    def _order(self) -> Tensor:
        names = [*self.people.joints, "neck"]
        return torch.tensor([names.index(name) for name in self.joints.joints])

    @cached_property
    def from_maps(self) -> np.ndarray:
        """[K of people] int64, where each of people's joints is among those of the maps."""
        return np.array([self.joints.index(name) for name in self.people.joints], np.int64)


# ---------------------------------------------------------------- targets


def confidence_targets(positions: Tensor, labelled: Tensor, map_size: tuple[int, int], sigma: float) -> Tensor:
    """[B, K + 1, h, w]: a Gaussian of height 1 about each joint, of several people the higher one, then background.

    positions: [B, P, K, 2] on the map, anything where not `labelled` [B, P, K]; sigma: cells; map_size: width, height.
    The background is 1 less the highest joint. Nothing is cut off (public code ends a Gaussian below 1 % of its
    height), and people are never added up, so that two joints close together keep their heights (section 2.2).
    """
    width, height = map_size
    positions = torch.where(labelled[..., None], positions.float(), 0.0)
    columns, rows = (torch.arange(n, dtype=torch.float32, device=positions.device) + 0.5 for n in map_size)
    across = torch.exp((columns - positions[..., 0, None]).square() * (-0.5 / sigma**2))
    down = torch.exp((rows - positions[..., 1, None]).square() * (-0.5 / sigma**2)) * labelled[..., None]
    maps = positions.new_zeros(len(positions), positions.shape[2], height, width)
    # Person by person: what is in memory does not grow with the crowd.
    for person in range(positions.shape[1]):
        torch.maximum(maps, down[:, person, :, :, None] * across[:, person, :, None, :], out=maps)
    return torch.cat([maps, 1 - maps.amax(dim=1, keepdim=True)], dim=1)


def field_targets(
    positions: Tensor, labelled: Tensor, limbs: np.ndarray, map_size: tuple[int, int], width: float
) -> Tensor:
    """[B, 2L, h, w]: on each limb the unit vector along it, x then y; where people's limbs overlap, their mean.

    A limb covers the cells whose centres are less than `width` cells beside it or beyond its ends. Otherwise as
    confidence_targets. A limb needs both joints and a length.
    """
    columns, rows = (torch.arange(n, dtype=torch.float32, device=positions.device) + 0.5 for n in map_size)
    positions = torch.where(labelled[..., None], positions.float(), 0.0)
    starts, ends = torch.from_numpy(limbs).to(positions.device).unbind(dim=1)
    offset = positions[:, :, ends] - positions[:, :, starts]
    length = torch.linalg.vector_norm(offset, dim=3)
    real = labelled[:, :, starts] & labelled[:, :, ends] & (length > 0)
    unit = offset / length.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    shape = (len(positions), len(limbs), map_size[1], map_size[0])
    total, count = positions.new_zeros(shape[0], shape[1], 2, *shape[2:]), positions.new_zeros(shape)
    for person in range(positions.shape[1]):
        u, a = unit[:, person], positions[:, person, starts]
        dx, dy = columns - a[..., 0, None], rows - a[..., 1, None]
        along = (dx * u[..., 0, None])[:, :, None, :] + (dy * u[..., 1, None])[..., None]
        across = (dx * u[..., 1, None])[:, :, None, :] - (dy * u[..., 0, None])[..., None]
        beyond = length[:, person, :, None, None] + width
        on = (across.abs() < width) & (along > -width) & (along < beyond) & real[:, person, :, None, None]
        total += on[:, :, None] * u[..., None, None]
        count += on
    return (total / count.clamp(min=1)[:, :, None]).flatten(1, 2)
