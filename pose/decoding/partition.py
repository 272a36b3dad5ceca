"""Partition and labelling: which candidates are joints, of which kind, and which of them belong to one person.

DeepCut's integer program (Pishchulin et al., CVPR 2016, section 2) over binary x, y, z: x says as what a candidate is
taken, y whether two candidates belong to one person, z is the product of both; minimise unary @ x + pair @ z. Here x
and z are indexed by options: one option is one candidate as one kind of joint. A candidate takes one of its options or
none. Candidates of one kind may share a person: several detections of one joint need no suppression beforehand.

pose.decoding.partition_search always answers, pose.decoding.partition_exact proves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

NONE = -1
"""The option and the person of a candidate that is not taken."""


@dataclass(frozen=True)
class Problem:
    """D candidates with N options. Costs are log-odds against: negative where a thing is likelier than not."""

    owner: np.ndarray
    """[N] int64, the candidate of each option: 0 to D - 1 in rising order, each at least once."""
    unary: np.ndarray
    """[N] float64, cost of taking an option."""
    pair: np.ndarray
    """[N, N] float64, symmetric: cost of two options taken in one person. Zero between options of one candidate."""

    @cached_property
    def size(self) -> int:
        """D, the number of candidates."""
        return int(self.owner[-1]) + 1 if len(self.owner) else 0

    @cached_property
    def first(self) -> np.ndarray:
        """[D] int64, each candidate's first option."""
        return np.searchsorted(self.owner, np.arange(self.size))

    def per_pair(self, costs: np.ndarray) -> np.ndarray:
        """[D, D]: the least of [N, N] over the options of each two candidates."""
        if not self.size:
            return np.zeros((0, 0))
        return np.minimum.reduceat(np.minimum.reduceat(costs, self.first, axis=0), self.first, axis=1)

    def value(self, option: np.ndarray, person: np.ndarray) -> float:
        """Of an answer: [D] options taken and [D] people they belong to, NONE where not."""
        taken = np.flatnonzero(option != NONE)
        chosen, people = option[taken], person[taken]
        together = people[:, None] == people[None]
        return float(self.unary[chosen].sum() + (self.pair[np.ix_(chosen, chosen)] * together).sum() / 2)

    def bound(self) -> float:
        """No answer's value is below this: every candidate has what attracts it, and half of each such pair."""
        if not self.size:
            return 0.0
        attraction = np.minimum(np.minimum.reduceat(self.pair, self.first, axis=1), 0).sum(axis=1)
        return float(np.minimum(np.minimum.reduceat(self.unary + attraction / 2, self.first), 0).sum())

    def restricted(self, options: np.ndarray) -> Problem:
        """The problem of these options alone (rising indices), their candidates numbered anew."""
        owner = np.unique(self.owner[options], return_inverse=True)[1].astype(np.int64)
        return Problem(owner, self.unary[options], self.pair[np.ix_(options, options)])


@dataclass(frozen=True)
class Partition:
    """An answer to a problem and how good it can be at best."""

    option: np.ndarray
    """[D] int64, the option each candidate takes, or NONE."""
    person: np.ndarray
    """[D] int64, 0 to the number of people - 1, or NONE."""
    value: float
    bound: float
    """No answer has a value below this."""

    @property
    def gap(self) -> float:
        """How far the value may be from the optimum, as a share of the bound: 0 is proven optimal."""
        distance = max(0.0, self.value - self.bound)
        return distance / max(abs(self.bound), 1.0) if distance > 1e-6 * max(1.0, abs(self.bound)) else 0.0

    @property
    def people(self) -> int:
        """How many there are."""
        return int(self.person.max(initial=NONE)) + 1


def renumbered(person: np.ndarray) -> np.ndarray:
    """The same people under numbers 0, 1, ... in the order of their first candidates."""
    seen = person[person != NONE]
    _, first, inverse = np.unique(seen, return_index=True, return_inverse=True)
    result = np.full(len(person), NONE)
    result[person != NONE] = np.argsort(np.argsort(first))[inverse]
    return result
