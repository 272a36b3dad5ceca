"""The partition and labelling program as matrices: its columns, its rows, and the transitivity that a solution breaks.

The program, per DeepCut (Pishchulin et al., CVPR 2016) but tighter. X_d is the sum of x over d's options, y_dd' the sum
of z over the options of both (the RLT equality), and

    X_d <= 1        sum over d' options of z <= x of d's option        y_ab + y_bc - y_ac <= X_b

where the last stands for y_ab + y_bc - 1 <= y_ac and for y <= X alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, vstack
from scipy.sparse.csgraph import connected_components

from pose.decoding.partition import NONE, Problem, renumbered

VIOLATED = 1e-6
"""A constraint broken by more than this is added."""
BLOCK = 4_000_000
"""Most constraints looked at together; bounds memory."""


@dataclass(frozen=True)
class Program:
    """Columns: x of the options, y of the pairs of candidates, z where one of the two has a choice."""

    problem: Problem
    y_of: np.ndarray
    """[D, D] column of y, symmetric; -1 on the diagonal."""
    z: np.ndarray
    """[Z, 2] options."""
    z_y: np.ndarray
    """[Z] column of the y that each z is part of."""
    cost: np.ndarray
    """[columns] of the objective."""

    @staticmethod
    def of(problem: Problem) -> Program:
        """Where neither of two candidates has a choice, y carries the cost and there is no z."""
        size, options = problem.size, len(problem.owner)
        a, b = np.triu_indices(size, 1)
        y = np.full((size, size), -1)
        y[a, b] = y[b, a] = options + np.arange(len(a))
        single = np.bincount(problem.owner, minlength=size) == 1
        settled = single[a] & single[b]
        first = problem.first
        cost_y = np.where(settled, problem.pair[first[a], first[b]], 0.0)
        n, m = np.triu_indices(options, 1)
        mine, theirs = problem.owner[n], problem.owner[m]
        free = (mine != theirs) & ~(single[mine] & single[theirs])
        z = np.stack([n[free], m[free]], axis=1)
        z_y = y[mine[free], theirs[free]]
        cost = np.concatenate([problem.unary, cost_y, problem.pair[z[:, 0], z[:, 1]]])
        return Program(problem, y, z, z_y, cost)

    @property
    def first_z(self) -> int:
        """Column of the first z."""
        return len(self.cost) - len(self.z)

    def rows(self) -> tuple[csr_array, np.ndarray, csr_array]:
        """Inequalities A v <= b and equalities E v = 0 without transitivity."""
        problem, owner = self.problem, self.problem.owner
        counts = np.bincount(owner, minlength=problem.size)
        unique = [(np.flatnonzero(owner == d), np.ones(counts[d])) for d in np.flatnonzero(counts > 1)]
        limits = [1.0] * len(unique)
        blocks = [_matrix(unique, len(self.cost))]
        # Where a pair costs, y is no larger than transitivity makes it, which is no more than X of either.
        a, b = np.triu_indices(problem.size, 1)
        single = (counts[a] == 1) & (counts[b] == 1)
        attracted = single & (self.cost[self.y_of[a, b]] < 0)
        y = self.y_of[a, b][attracted]
        for end in (a, b):
            x = problem.first[end[attracted]]
            blocks.append(_sparse(np.stack([y, x], axis=1), np.array([1.0, -1.0]), len(self.cost)))
            limits += [0.0] * len(y)
        if len(self.z):
            choices, equal = self._choices()
            blocks.append(choices)
            limits += [0.0] * choices.shape[0]
        else:
            equal = csr_array((0, len(self.cost)))
        return csr_array(vstack(blocks)), np.array(limits), equal

    def _choices(self) -> tuple[csr_array, csr_array]:
        """Sum of z over one option's partners in another candidate - x <= 0, and sum of z - y = 0."""
        columns, numbers = len(self.cost), self.first_z + np.arange(len(self.z))
        owner, size = self.problem.owner, self.problem.size
        keys = np.concatenate([self.z[:, 0] * size + owner[self.z[:, 1]], self.z[:, 1] * size + owner[self.z[:, 0]]])
        distinct, row = np.unique(keys, return_inverse=True)
        ones = np.ones(len(keys))
        choices = csr_array((ones, (row, np.tile(numbers, 2))), shape=(len(distinct), columns))
        x = csr_array((np.ones(len(distinct)), (np.arange(len(distinct)), distinct // size)), shape=choices.shape)
        pairs, row = np.unique(self.z_y, return_inverse=True)
        sums = csr_array((np.ones(len(row)), (row, numbers)), shape=(len(pairs), columns))
        y = csr_array((np.ones(len(pairs)), (np.arange(len(pairs)), pairs)), shape=sums.shape)
        return csr_array(choices - x), csr_array(sums - y)

    def split(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """X [D] and Y [D, D] of a solution; the diagonal is 0."""
        x = np.add.reduceat(values[: len(self.problem.owner)], self.problem.first)
        y = np.where(self.y_of >= 0, values[self.y_of], 0.0)
        return x, y

    def cuts(self, values: np.ndarray, most: int) -> csr_array | None:
        """The transitivity constraints that a solution breaks, the worst first; None where it breaks none."""
        x, y = self.split(values)
        return self.transitivity(x, y, most)

    def first_cuts(self, most: int) -> csr_array | None:
        """What is broken where everyone is taken and joined to all who attract: those first that cost most to mend."""
        least = self.problem.per_pair(self.problem.pair)
        return self.transitivity(np.ones(len(least)), (least < 0).astype(float), most, np.abs(least))

    def transitivity(
        self, x: np.ndarray, y: np.ndarray, most: int, weight: np.ndarray | None = None
    ) -> csr_array | None:
        """Broken constraints; the worst first, or those whose least `weight` [D, D] of three pairs is the largest."""
        a, c = np.triu_indices(len(x), 1)
        places, amounts = [], []
        step = max(1, BLOCK // max(1, len(a)))
        for start in range(0, len(x), step):
            middle = y[start : start + step]
            broken = middle[:, a] + middle[:, c]  # [b, a and c]
            broken -= y[a, c]
            broken -= x[start : start + step, None]
            # Nothing is broken where b is a or c: y is 0 on the diagonal.
            at = np.flatnonzero(broken > VIOLATED)
            places.append(at + start * len(a))
            amounts.append(broken.ravel()[at])
        b, pair = np.divmod(np.concatenate(places), max(1, len(a)))
        a, c = a[pair], c[pair]
        if not len(b):
            return None
        if len(b) > most:
            if weight is None:
                badness = np.concatenate(amounts)
            else:
                badness = np.minimum(np.minimum(weight[a, b], weight[b, c]), weight[a, c])
            worst = np.argpartition(-badness, most)[:most]
            b, a, c = b[worst], a[worst], c[worst]
        columns = np.stack([self.y_of[a, b], self.y_of[b, c], self.y_of[a, c]], axis=1)
        rows = _sparse(columns, np.array([1.0, 1.0, -1.0]), len(self.cost))
        return csr_array(rows - self._taken(b))

    def _taken(self, candidates: np.ndarray) -> csr_array:
        """One row per candidate: X."""
        owner = self.problem.owner
        member = csr_array(
            (np.ones(len(owner)), (owner, np.arange(len(owner)))), shape=(self.problem.size, len(self.cost))
        )
        return csr_array(member[candidates])

    def answer(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Options and people nearest to a solution: likelier taken than not, likelier together than not."""
        problem = self.problem
        x, y = self.split(values)
        best = np.lexsort((-values[: len(problem.owner)], problem.owner))[problem.first]
        option = np.where(x > 0.5, best, NONE)
        linked = (y > 0.5) & (option != NONE)[:, None] & (option != NONE)[None]
        _, person = connected_components(csr_array(linked), directed=False)
        return option, renumbered(np.where(option != NONE, person, NONE))


def _sparse(columns: np.ndarray, values: np.ndarray, width: int) -> csr_array:
    """[R, width] whose row r has `values` in columns[r]."""
    count, entries = columns.shape
    starts = np.arange(count + 1) * entries
    return csr_array((np.tile(values, count), columns.ravel(), starts), shape=(count, width))


def _matrix(rows: list[tuple[np.ndarray, np.ndarray]], width: int) -> csr_array:
    """[R, width] from the columns and values of each row."""
    starts = np.cumsum([0, *(len(columns) for columns, _ in rows)])
    columns = np.concatenate([np.zeros(0, int), *(columns for columns, _ in rows)])
    return csr_array((np.concatenate([np.zeros(0), *(v for _, v in rows)]), columns, starts), shape=(len(rows), width))
