"""Pose-guided proposals: how a detector's boxes miss people, learnt per kind of pose, and drawn again for training.

Source: RMPE, section 3.4. Poses are aligned by their torso and clustered to atoms; for each atom a Gaussian mixture
holds the offsets of a detector's edges from the true ones, in shares of the true box's width and height. The released
code has none of this, but shifts all edges by fixed Gaussians: RELEASED_MEAN and RELEASED_DEVIATION, which stand here
where there are no detections to learn from. (In 15 of 100 draws it takes a smaller box within the true one instead;
that is left out here.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pose.errors import DataError
from pose.skeleton import Skeleton

RELEASED_MEAN = (-0.0142, 0.0043, 0.0154, -0.0013)
RELEASED_DEVIATION = (0.1158, 0.068, 0.1337, 0.0711)
"""Offsets of left, top, right and bottom edge in the released code's box jitter."""

MIN_OVERLAP = 0.5
"""A detection belongs to the person it overlaps most, if by at least this intersection over union."""
MIN_SIDE = 0.3
"""No drawn box is narrower or lower than this share of the true one."""
ROUNDS = 100
"""At most, of k-means and of expectation maximisation; both stop when nothing changes."""
STARTS = 8
"""Of k-means, which ends in the nearest valley."""
FLOOR = 1e-4
"""Variance that is added to a mixture's components: a hundredth of a box's side."""
SCARCE = 10
"""An atom with fewer offsets than this for each component is given everyone's mixture."""


@dataclass(frozen=True)
class Offsets:
    """Mixtures of edge offsets: A atoms, each with M Gaussians, then one mixture over everyone."""

    atoms: Tensor
    """[A, K, 2] float32, aligned poses."""
    weights: Tensor
    """[A + 1, M] float32; each row sums to one."""
    means: Tensor
    """[A + 1, M, 4] float32: offsets of left, top, right, bottom in shares of the true box's sides."""
    factors: Tensor
    """[A + 1, M, 4, 4] float32, lower triangular: a covariance is factor @ factor.T."""

    @staticmethod
    def released(atoms: int, components: int, joints: int) -> Offsets:
        """The released code's Gaussians, alike for every atom."""
        weights = torch.zeros(atoms + 1, components)
        weights[:, 0] = 1
        means = torch.tensor(RELEASED_MEAN).expand(atoms + 1, components, 4).clone()
        factors = torch.diag(torch.tensor(RELEASED_DEVIATION)).expand(atoms + 1, components, 4, 4).clone()
        return Offsets(torch.zeros(atoms, joints, 2), weights, means, factors)

    @staticmethod
    def fit(
        poses: Tensor,
        labelled: Tensor,
        offsets: Tensor,
        people: Tensor,
        skeleton: Skeleton,
        atoms: int,
        components: int,
        seed: int,
    ) -> Offsets:
        """From N people's poses [N, K, 2] with their masks [N, K] and O offsets [O, 4] of the `people` [O] they miss.

        An atom without SCARCE offsets per component has everyone's mixture. Raises DataError where there are fewer
        than that in all, or fewer people with a torso than atoms.
        """
        if len(offsets) < SCARCE * components:
            raise DataError(
                f"{len(offsets)} detections overlap a person by {MIN_OVERLAP:g} or more, expected at least "
                f"{SCARCE * components} to fit {components} components; lower `components`, or take detections of the "
                "training split."
            )
        generator = torch.Generator().manual_seed(seed)
        aligned, whole = align(poses.double().cpu(), labelled.cpu(), skeleton)
        known = labelled.cpu() & whole[:, None]
        centres = cluster(aligned[whole], known[whole], atoms, generator)
        belongs = assign(aligned, known, centres)[people.cpu()]
        offsets = offsets.double().cpu()
        everyone = mixture(offsets, components, generator)
        fitted = [
            mixture(own, components, generator) if len(own) >= SCARCE * components else everyone
            for own in (offsets[belongs == atom] for atom in range(atoms))
        ]
        weights, means, covariances = (torch.stack(parts) for parts in zip(*fitted, everyone, strict=True))
        return Offsets(centres.float(), weights.float(), means.float(), torch.linalg.cholesky(covariances).float())

    def draw(
        self, poses: Tensor, labelled: Tensor, skeleton: Skeleton, generator: torch.Generator | None = None
    ) -> Tensor:
        """[B, 4] offsets for these people; without a generator from torch's own of their device."""
        aligned, whole = align(poses, labelled, skeleton)
        atom = assign(aligned, labelled & whole[:, None], self.atoms)
        component = torch.multinomial(self.weights[atom], 1, generator=generator)[:, 0]
        noise = torch.randn(len(poses), 4, device=poses.device, generator=generator)
        return self.means[atom, component] + (self.factors[atom, component] @ noise[:, :, None])[:, :, 0]


def shift_edges(boxes: Tensor, offsets: Tensor) -> Tensor:
    """Boxes xyxy [B, 4] whose edges moved by shares of their sides; at least MIN_SIDE of each side is left."""
    sides = boxes[:, 2:] - boxes[:, :2]
    moved = boxes + offsets * sides.repeat(1, 2)
    centre = (moved[:, :2] + moved[:, 2:]) / 2
    half = torch.maximum((moved[:, 2:] - moved[:, :2]) / 2, MIN_SIDE / 2 * sides)
    return torch.cat([centre - half, centre + half], dim=1)


def match(
    boxes: Tensor, images: Tensor, found: Tensor, found_images: Tensor, min_overlap: float = MIN_OVERLAP
) -> tuple[Tensor, Tensor]:
    """Offsets [O, 4] of the detections `found` xyxy [D, 4] that belong to someone, and whom [O] they belong to.

    boxes: the people's true boxes xyxy [N, 4], in the `images` [N].
    """
    parts: list[tuple[Tensor, Tensor]] = []
    people_by_image, found_by_image = _by_image(images), _by_image(found_images)
    for image in people_by_image.keys() & found_by_image.keys():
        people, candidates = people_by_image[image], found[found_by_image[image]]
        overlap, best = _iou(candidates, boxes[people]).max(dim=1)
        close = overlap >= min_overlap
        owner = people[best[close]]
        sides = (boxes[owner, 2:] - boxes[owner, :2]).repeat(1, 2)
        parts.append(((candidates[close] - boxes[owner]) / sides, owner))
    if not parts:
        return boxes.new_zeros(0, 4), images.new_zeros(0)
    return torch.cat([offsets for offsets, _ in parts]), torch.cat([owner for _, owner in parts])


def _by_image(images: Tensor) -> dict[Any, Tensor]:
    order = torch.argsort(images, stable=True)
    identities, counts = torch.unique_consecutive(images[order], return_counts=True)
    return dict(zip(identities.tolist(), order.split(counts.tolist()), strict=True))


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """[N] intersection over union of each two boxes xyxy of [N, 4] and [N, 4]."""
    return _iou(a, b).diagonal()


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """[A, B] of boxes xyxy [A, 4] and [B, 4]."""
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    common = (high - low).clamp(min=0).prod(dim=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(dim=1) for boxes in (a, b)]
    return common / (areas[0][:, None] + areas[1][None] - common)


# ---------------------------------------------------------------- pose atoms


def align(poses: Tensor, labelled: Tensor, skeleton: Skeleton) -> tuple[Tensor, Tensor]:
    """Poses [N, K, 2] about the middle of their torso, which has length 1; and which [N] have one at all.

    Anything for those that have none, zeros for joints without a position.
    """
    a, b = (skeleton.index(joint) for joint in skeleton.torso)
    length = torch.linalg.vector_norm(poses[:, a] - poses[:, b], dim=1)
    whole = labelled[:, a] & labelled[:, b] & (length > 0)
    middle = (poses[:, a] + poses[:, b]) / 2
    scale = torch.where(whole, length, torch.ones_like(length))
    aligned = (poses - middle[:, None]) / scale[:, None, None]
    return torch.where(labelled[..., None], aligned, torch.zeros_like(aligned)), whole


def distances(poses: Tensor, known: Tensor, centres: Tensor) -> Tensor:
    """[N, A], mean squared distance of the known joints [N, K] of aligned poses from each centre [A, K, 2]."""
    weights = known.to(poses.dtype) / known.sum(dim=1, keepdim=True).clamp(min=1)
    own = (weights[..., None] * poses.square()).sum(dim=(1, 2))
    cross = (weights[..., None] * poses).flatten(1) @ centres.flatten(1).T
    others = weights @ centres.square().sum(dim=2).T
    return (own[:, None] - 2 * cross + others).clamp(min=0)


def assign(poses: Tensor, known: Tensor, centres: Tensor) -> Tensor:
    """[N], the nearest atom of each aligned pose; one past the last for poses of which nothing is known."""
    nearest = distances(poses, known, centres).argmin(dim=1)
    return torch.where(known.any(dim=1), nearest, torch.full_like(nearest, len(centres)))


def cluster(poses: Tensor, known: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Centres [count, K, 2] of aligned poses [N, K, 2] by k-means over the known joints [N, K].

    The tightest of STARTS runs, each from centres drawn far apart (k-means++). A joint that nobody in a cluster shows
    stays where it was. Raises DataError for fewer poses than clusters.
    """
    if len(poses) < count:
        raise DataError(f"{len(poses)} samples are too few for {count} clusters; lower `atoms` or `components`.")
    runs = [_settle(poses, known, _far_apart(poses, known, count, generator)) for _ in range(STARTS)]
    return min(runs, key=lambda centres: float(distances(poses, known, centres).amin(dim=1).sum()))


def _far_apart(poses: Tensor, known: Tensor, count: int, generator: torch.Generator) -> Tensor:
    centres = poses[torch.randint(len(poses), (1,), generator=generator)]
    while len(centres) < count:
        nearest = distances(poses, known, centres).amin(dim=1)
        # Where all poses are alike any of them will do.
        odds = nearest if nearest.sum() > 0 else torch.ones_like(nearest)
        centres = torch.cat([centres, poses[torch.multinomial(odds, 1, generator=generator)]])
    return centres


def _settle(poses: Tensor, known: Tensor, centres: Tensor) -> Tensor:
    belongs = torch.full((len(poses),), -1)
    for _ in range(ROUNDS):
        before, belongs = belongs, distances(poses, known, centres).argmin(dim=1)
        if torch.equal(before, belongs):
            break
        member = torch.nn.functional.one_hot(belongs, len(centres)).to(poses.dtype)  # [N, A]
        shown = torch.einsum("na,nk->ak", member, known.to(poses.dtype))[..., None]
        total = torch.einsum("na,nkc->akc", member, poses * known[..., None])
        centres = torch.where(shown > 0, total / shown.clamp(min=1), centres)
    return centres


# ---------------------------------------------------------------- Gaussian mixtures


def mixture(samples: Tensor, components: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Weights [M], means [M, D] and covariances [M, D, D] of samples [N, D] by expectation maximisation."""
    points = samples[:, None]  # k-means for one "joint" of D coordinates
    centres = cluster(points, torch.ones(len(samples), 1, dtype=torch.bool), components, generator)[:, 0]
    belongs = torch.cdist(samples, centres).argmin(dim=1)
    share = torch.nn.functional.one_hot(belongs, components).to(samples.dtype)
    previous = -torch.inf
    for _ in range(ROUNDS):
        weights, means, covariances = _maximise(samples, share)
        densities = _log_densities(samples, means, covariances) + weights.log()
        likelihood = densities.logsumexp(dim=1)
        share = (densities - likelihood[:, None]).exp()
        now = float(likelihood.mean())
        if now - previous < 1e-7:
            break
        previous = now
    return weights, means, covariances


def _maximise(samples: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Parameters for which these shares [N, M] of each sample in each component are most likely."""
    mass = share.sum(dim=0).clamp(min=1e-9)
    means = share.T @ samples / mass[:, None]
    centred = samples[:, None] - means
    covariances = torch.einsum("nm,nmi,nmj->mij", share, centred, centred) / mass[:, None, None]
    return mass / mass.sum(), means, covariances + FLOOR * torch.eye(samples.shape[1], dtype=samples.dtype)


def _log_densities(samples: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """[N, M]."""
    factors = torch.linalg.cholesky(covariances)
    whitened = torch.einsum("mij,nmj->nmi", torch.linalg.inv(factors), samples[:, None] - means)
    volume = factors.diagonal(dim1=1, dim2=2).log().sum(dim=1) + samples.shape[1] / 2 * math.log(2 * math.pi)
    return -0.5 * whitened.square().sum(dim=2) - volume
