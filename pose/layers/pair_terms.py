"""DeeperCut's pairwise terms: how sure two candidate joints are to belong to one person.

Candidates of two kinds: each predicts where the other kind's joint of its person lies; how far and in which direction
that misses the other candidate, seen from both ends, goes into a logistic regression of the pair of kinds. Candidates
of one kind: a logistic regression on their distance, alike for all kinds.

Source: Insafutdinov et al., ECCV 2016, section 4, and the authors' release. Here misses are measured in standard
deviations of the pair's offsets instead of being scaled to [0, 1] by the extremes of a sample, both regressions are
fitted to the candidates that the detector finds in the training split, and the release's fixed rule for one kind
(logit 7.5 - 0.2 per px) is only what the fit starts from.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pose.errors import ConfigError
from pose.skeleton import Skeleton

Graph = Literal["full", "limbs"]

PRIOR = (-2.0, 0.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0)
"""Weights of misses and angles forward and backward, of exp(-.) of the four, and of 1, before anything is known."""
SAME_PRIOR = (-0.2, 7.5)
"""Weight of the distance in px, and of 1."""
RIDGE = 1.0
"""How strongly weights are drawn to the prior: as by an example or so."""
MOST_LOGIT = 16.0
"""Probabilities are kept about 1e-7 from 0 and 1."""
ROUNDS = 50


class PairTerms(nn.Module):
    """Buffers only: offset statistics and regression weights, fitted to a training split and kept with the network."""

    ordered: Tensor
    """[K, K] int64: channel pair of the map that predicts, at a joint of the row, the joint of the column; or -1."""
    unordered: Tensor
    """[K, K] int64, symmetric: the regression of two kinds; or -1."""
    mean: Tensor
    """[P, 2] px."""
    deviation: Tensor
    """[P, 2] px."""
    weight: Tensor
    """[U, 9]."""
    same: Tensor
    """[2]."""

    def __init__(self, skeleton: Skeleton, graph: Graph) -> None:
        super().__init__()
        pairs = _pairs(skeleton, graph)
        ordered, unordered = np.full((2, skeleton.size, skeleton.size), -1)
        for number, (a, b) in enumerate(pairs):
            ordered[a, b], ordered[b, a] = 2 * number, 2 * number + 1
            unordered[a, b] = unordered[b, a] = number
        self.kinds = pairs
        self.pairs = len(pairs)
        self.register_buffer("ordered", torch.from_numpy(ordered), persistent=False)
        self.register_buffer("unordered", torch.from_numpy(unordered), persistent=False)
        self.register_buffer("mean", torch.zeros(2 * len(pairs), 2))
        self.register_buffer("deviation", torch.ones(2 * len(pairs), 2))
        self.register_buffer("weight", torch.tensor(PRIOR).repeat(len(pairs), 1))
        self.register_buffer("same", torch.tensor(SAME_PRIOR))

    def features(self, part: Tensor, position: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """[N, N, 9] of each two candidates, the one of the lower kind first, and their distances [N, N] in px.

        part [N] int64, position [N, 2] px, offsets [N, K, 2] px: where each expects the joints of its person.
        """
        real = position[None] - position[:, None]
        expected = offsets[:, part]
        scale = torch.linalg.vector_norm(self.deviation, dim=1).clamp(min=1e-3)
        spread = scale[self.ordered[part[:, None], part[None]].clamp(min=0)]
        miss = torch.linalg.vector_norm(real - expected, dim=2) / spread
        cross = real[..., 0] * expected[..., 1] - real[..., 1] * expected[..., 0]
        angle = torch.atan2(cross, (real * expected).sum(dim=2)).abs()
        first = (part[:, None] < part[None])[..., None]
        here, there = torch.stack([miss, angle], dim=2), torch.stack([miss.T, angle.T], dim=2)
        four = torch.cat([torch.where(first, here, there), torch.where(first, there, here)], dim=2)
        features = torch.cat([four, torch.exp(-four), torch.ones_like(four[..., :1])], dim=2)
        return features, torch.linalg.vector_norm(real, dim=2)

    def logits(self, part: Tensor, position: Tensor, offsets: Tensor) -> Tensor:
        """[N, N] log-odds that two candidates belong to one person; 0 where the graph has no such pair."""
        features, distance = self.features(part, position, offsets)
        pair = self.unordered[part[:, None], part[None]]
        different = (features * self.weight[pair.clamp(min=0)]).sum(dim=2)
        logits = torch.where(pair >= 0, different, 0.0)
        logits = torch.where(part[:, None] == part[None], self.same[0] * distance + self.same[1], logits)
        return logits.clamp(-MOST_LOGIT, MOST_LOGIT)


def _pairs(skeleton: Skeleton, graph: Graph) -> list[tuple[int, int]]:
    """Kinds of joints with terms between them, the lower first.

    Raises ConfigError for a single joint, and where the limbs leave joints apart.
    """
    if skeleton.size < 2:
        raise ConfigError(f"skeleton {skeleton.name} has one joint; DeepCut links joints and needs two at least")
    if graph == "full":
        return [(a, b) for a in range(skeleton.size) for b in range(a + 1, skeleton.size)]
    pairs = sorted({(min(a, b), max(a, b)) for a, b in skeleton.limb_indices.tolist()})
    reached, growing = {0}, True
    while growing:
        near = {b for a, b in pairs if a in reached} | {a for a, b in pairs if b in reached}
        growing = not near <= reached
        reached |= near
    if apart := [joint for number, joint in enumerate(skeleton.joints) if number not in reached]:
        raise ConfigError(
            f"the limbs of skeleton {skeleton.name} do not reach {', '.join(apart)} from {skeleton.joints[0]}, so that "
            "nobody would have them; add limbs to the skeleton, or set systems.deepcut.graph to full"
        )
    return pairs


class OffsetStatistics:
    """Means and deviations of the offsets between the joints of people, gathered batch by batch."""

    def __init__(self, terms: PairTerms) -> None:
        self.terms = terms
        self.count = torch.zeros(len(terms.mean), 1, dtype=torch.float64)
        self.sum = torch.zeros(len(terms.mean), 2, dtype=torch.float64)
        self.squares = torch.zeros(len(terms.mean), 2, dtype=torch.float64)

    def add(self, keypoints: Tensor, labelled: Tensor) -> None:
        """keypoints [N, K, 2] px, labelled [N, K]."""
        a, b = torch.nonzero(self.terms.ordered.cpu() >= 0).T
        pair = self.terms.ordered.cpu()[a, b]
        points, known = torch.where(labelled[..., None], keypoints, 0.0).double().cpu(), labelled.cpu()
        both = (known[:, a] & known[:, b])[..., None].double()
        offsets = (points[:, b] - points[:, a]) * both
        self.count.index_add_(0, pair, both.sum(dim=0))
        self.sum.index_add_(0, pair, offsets.sum(dim=0))
        self.squares.index_add_(0, pair, offsets.square().sum(dim=0))

    def store(self) -> None:
        """Into the buffers; a pair that was never seen gets what the others have, and no deviation is below 1 px."""
        count = self.count.clamp(min=1)
        mean = self.sum / count
        variance = (self.squares / count - mean.square()).clamp(min=0)
        seen = self.count[:, 0] > 1
        usual = variance[seen].mean(dim=0) if seen.any() else torch.ones(2, dtype=torch.float64)
        deviation = torch.where(seen[:, None], variance, usual).sqrt().clamp(min=1.0)
        self.terms.mean.copy_(mean)
        self.terms.deviation.copy_(deviation)


class PairExamples:
    """Pairs of candidates of which it is known whether they belong to one person; at most so many per regression."""

    def __init__(self, terms: PairTerms, most: int) -> None:
        self.terms, self.most = terms, most
        self.rows: list[list[list[np.ndarray]]] = [[[], []] for _ in range(terms.pairs + 1)]
        self.counts = np.zeros((terms.pairs + 1, 2), np.int64)

    @property
    def full(self) -> bool:
        """No regression takes more examples, of either answer."""
        return bool((self.counts >= self.most).all())

    def add(self, part: Tensor, position: Tensor, offsets: Tensor, person: Tensor) -> None:
        """Candidates of one image as in `features`; person [N] int64, whose joint each is, -1 where nobody's."""
        features, distance = self.terms.features(part, position, offsets)
        known = (person >= 0)[:, None] & (person >= 0)[None]
        upper = torch.triu(known, diagonal=1)
        pair = self.terms.unordered[part[:, None], part[None]]
        number = torch.where(part[:, None] == part[None], self.terms.pairs, pair)
        rows = upper & (number >= 0)
        same = (person[:, None] == person[None])[rows].cpu().numpy().astype(np.int64)
        numbers, far = number[rows].cpu().numpy(), distance[rows].cpu().double().numpy()
        values = features[rows].cpu().double().numpy()
        for regression in np.unique(numbers):
            last = regression == self.terms.pairs
            for answer in (0, 1):
                chosen = (numbers == regression) & (same == answer)
                room = self.most - int(self.counts[regression, answer])
                taken = np.stack([far, np.ones_like(far)], axis=1)[chosen] if last else values[chosen]
                self.rows[regression][answer].append(taken[:room])
                self.counts[regression, answer] += len(taken[:room])

    def store(self) -> list[dict[str, Any]]:
        """Fits all regressions into the buffers; one without examples keeps its prior.

        Together and apart weigh the same, however many examples there are of either. Returns, in the regressions'
        order, how many examples there were of each answer, the share of them that the regression has right, the
        answers weighed alike (None without examples), and its weights.
        """
        said: list[dict[str, Any]] = []
        for number, answers in enumerate(self.rows):
            prior = np.array(SAME_PRIOR if number == self.terms.pairs else PRIOR)
            sides = [np.concatenate([np.zeros((0, len(prior))), *rows]) for rows in answers]
            kept = self.terms.same if number == self.terms.pairs else self.terms.weight[number]
            facts: dict[str, Any] = {"apart": len(sides[0]), "together": len(sides[1]), "right": None}
            said.append(facts)
            if not len(sides[0]) + len(sides[1]):
                facts["weights"] = kept.tolist()
                continue
            labels = np.repeat([0.0, 1.0], [len(side) for side in sides])
            half = sum(map(len, sides)) / 2
            weights = np.repeat([half / max(len(side), 1) for side in sides], [len(side) for side in sides])
            if not len(sides[0]) or not len(sides[1]):
                weights[:] = 1.0
            fitted = logistic(np.concatenate(sides), labels, weights, prior)
            kept.copy_(torch.from_numpy(fitted).float())
            right = [((side @ fitted > 0) == bool(answer)).mean() for answer, side in enumerate(sides) if len(side)]
            facts |= {"right": float(np.mean(right)), "weights": kept.tolist()}
        return said


def logistic(features: np.ndarray, labels: np.ndarray, weights: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """[F] weights that minimise the weighted logistic loss over [M, F], [M], [M], drawn to the prior by RIDGE.

    Newton's method with halved steps where a whole one would overshoot.
    """
    found = prior.astype(np.float64)

    def loss(w: np.ndarray) -> float:
        scores = features @ w
        return float(
            (weights * (np.logaddexp(0, scores) - labels * scores)).sum() + RIDGE / 2 * ((w - prior) ** 2).sum()
        )

    now = loss(found)
    for _ in range(ROUNDS):
        chance = 1 / (1 + np.exp(-np.clip(features @ found, -500, 500)))
        gradient = features.T @ (weights * (chance - labels)) + RIDGE * (found - prior)
        curvature = (features.T * (weights * chance * (1 - chance))) @ features + RIDGE * np.eye(len(prior))
        step = np.linalg.solve(curvature, gradient)
        while (after := loss(found - step)) > now and np.abs(step).max() > 1e-9:
            step /= 2
        found, before, now = found - step, now, after
        if before - now < 1e-9 * max(1.0, abs(now)):
            break
    return found
