"""The partition and labelling program solved to a proven optimum, or as near to it as a time limit allows.

Linear program first, with the transitivity constraints that it violates added round by round; then, where its answer is
fractional, the integer program over what reduced costs leave open, again with violated constraints added. Every bound
on the way is kept, so that whatever happens the answer comes with its gap. HiGHS does the work, through scipy.

The program, per DeepCut (Pishchulin et al., CVPR 2016) but tighter. X_d is the sum of x over d's options, y_dd' the sum
of z over the options of both (the RLT equality), and

    X_d <= 1        sum over d' options of z <= x of d's option        y_ab + y_bc - y_ac <= X_b

where the last stands for y_ab + y_bc - 1 <= y_ac and for y <= X alike.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array, vstack
from scipy.sparse.csgraph import connected_components

from pose.decoding.partition import NONE, Partition, Problem, local_search

VIOLATED = 1e-6
"""A constraint broken by more than this is added."""
CUTS = 100
"""Most constraints added in one round, per candidate."""
TIGHT = 1e-6
"""Slack up to which a constraint of the linear program goes into the integer one; the others come back if violated."""
SETTLED = 1e-7
"""A variable whose other value costs so much more than the best known answer keeps this one."""


def solve(problem: Problem, time_limit: float) -> Partition:
    """The optimum, or the best answer found within `time_limit` seconds, with a bound. 0: the local search alone.

    Candidates that no answer gains by are dropped, and those that nothing attracts to one another are solved apart.
    """
    deadline = time.monotonic() + time_limit
    option, person = np.full(problem.size, NONE), np.full(problem.size, NONE)
    value, bound, people = 0.0, 0.0, 0
    for options in sorted(components(problem), key=len):
        part = problem.restricted(options)
        answer = local_search(part)
        if answer.gap > 0 and time.monotonic() < deadline:
            answer = _Search(part, answer, deadline).run()
        candidates = np.unique(problem.owner[options])
        taken = answer.option != NONE
        option[candidates[taken]] = options[answer.option[taken]]
        person[candidates[taken]] = people + answer.person[taken]
        value, bound, people = value + answer.value, bound + answer.bound, people + answer.people
    return Partition(option, person, value, bound)


def components(problem: Problem) -> list[np.ndarray]:
    """Rising indices of options that can matter, in sets between which nothing attracts."""
    useful = np.arange(len(problem.owner))
    while len(useful):
        part = problem.restricted(useful)
        attraction = np.minimum(np.minimum.reduceat(part.pair, part.first, axis=1), 0).sum(axis=1)
        kept = part.unary + attraction < 0
        if kept.all():
            break
        useful = useful[kept]
    if not len(useful):
        return []
    part = problem.restricted(useful)
    count, group = connected_components(csr_array(part.per_pair(part.pair) < 0), directed=False)
    return [useful[group[part.owner] == number] for number in range(count)]


def _solve_one(problem: Problem, deadline: float) -> Partition:
    best = local_search(problem)
    if best.gap == 0 or time.monotonic() >= deadline:
        return best
    return _Search(problem, best, deadline).run()


@dataclass(frozen=True)
class _Variables:
    """Columns of the program: x of the options, y of the pairs of candidates, z where one of the two has a choice."""

    problem: Problem
    first_y: np.ndarray
    """[D, D] column of y, symmetric; -1 on the diagonal."""
    z: np.ndarray
    """[Z, 2] options."""
    z_y: np.ndarray
    """[Z] column of the y that each z is part of."""
    cost: np.ndarray
    """[columns] of the objective."""

    @staticmethod
    def of(problem: Problem) -> _Variables:
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
        return _Variables(problem, y, z, z_y, cost)

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
        attracted = single & (self.cost[self.first_y[a, b]] < 0)
        y = self.first_y[a, b][attracted]
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
        y = np.where(self.first_y >= 0, values[self.first_y], 0.0)
        return x, y

    def cuts(self, values: np.ndarray, most: int) -> csr_array | None:
        """The transitivity constraints that a solution breaks, the worst first; None where it breaks none."""
        x, y = self.split(values)
        diagonal = np.arange(len(x))
        broken = y[:, :, None] + y[:, None, :] - y[None] - x[:, None, None]  # [b, a, c]
        broken[diagonal, diagonal] = broken[diagonal, :, diagonal] = broken[:, diagonal, diagonal] = -1
        b, a, c = np.nonzero(broken > VIOLATED)
        b, a, c = (index[a < c] for index in (b, a, c))
        if not len(b):
            return None
        if len(b) > most:
            worst = np.argpartition(-broken[b, a, c], most)[:most]
            b, a, c = b[worst], a[worst], c[worst]
        columns = np.stack([self.first_y[a, b], self.first_y[b, c], self.first_y[a, c]], axis=1)
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
        return option, np.where(option != NONE, person, NONE)


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


class _Search:
    """One connected problem, its best answer so far and the best bound."""

    def __init__(self, problem: Problem, best: Partition, deadline: float) -> None:
        self.problem, self.deadline = problem, deadline
        self.option, self.person, self.value, self.bound = best.option, best.person, best.value, best.bound
        self.variables = _Variables.of(problem)
        self.matrix, self.limits, self.equal = self.variables.rows()
        self.most = max(1, int(CUTS * problem.size))

    @property
    def left(self) -> float:
        """Seconds; HiGHS takes no limit of 0."""
        return max(self.deadline - time.monotonic(), 1e-3)

    @property
    def over(self) -> bool:
        """Nothing is left to prove, or no time to prove it."""
        return self.best().gap == 0 or time.monotonic() >= self.deadline

    def best(self) -> Partition:
        """What is known by now."""
        return Partition(self.option, self.person, self.value, min(self.bound, self.value))

    def run(self) -> Partition:
        """Linear program, then integer program."""
        relaxed = self.relax()
        if relaxed is not None and not self.over:
            self.branch(*relaxed)
        return self.best()

    def try_answer(self, values: np.ndarray) -> None:
        """Takes over the answer nearest to a solution, improved by the local search, if it is the best one."""
        option, person = self.variables.answer(values)
        start = Partition(option, person, self.problem.value(option, person), self.bound)
        found = local_search(self.problem, start)
        if found.value < self.value:
            self.option, self.person, self.value = found.option, found.person, found.value

    def add(self, rows: csr_array) -> None:
        """More inequalities with 0 on their right."""
        self.matrix = csr_array(vstack([self.matrix, rows]))
        self.limits = np.concatenate([self.limits, np.zeros(rows.shape[0])])

    def relax(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Solves the linear program; bounds [columns] of its variables in any better answer, None out of time."""
        while True:
            equal = {"A_eq": self.equal, "b_eq": np.zeros(self.equal.shape[0])} if self.equal.shape[0] else {}
            solved = linprog(
                self.variables.cost, self.matrix, self.limits, **equal, bounds=(0, 1), method="highs",
                options={"time_limit": self.left},
            )  # fmt: skip
            if solved.status != 0:
                return None
            self.bound = max(self.bound, float(solved.fun))
            cuts = self.variables.cuts(solved.x, self.most)
            if cuts is None:
                break
            if self.over:
                return None
            self.add(cuts)
        self.try_answer(solved.x)
        slack = self.value - solved.fun + SETTLED
        low = (-solved.upper.marginals > slack).astype(float)
        high = (~(solved.lower.marginals > slack)).astype(float)
        tight = solved.slack <= TIGHT
        self.matrix, self.limits = self.matrix[tight], self.limits[tight]
        return low, high

    def branch(self, low: np.ndarray, high: np.ndarray) -> None:
        """Solves the integer program within these bounds; everything outside is no better than what is known."""
        variables = self.variables
        known = self.value
        integral = np.ones(len(variables.cost))
        integral[variables.first_z :] = 0  # z follows from x and y
        base, limits, _ = variables.rows()
        self.matrix = csr_array(vstack([base, self.matrix]))
        self.limits = np.concatenate([limits, self.limits])
        while not self.over:
            constraints = [LinearConstraint(self.matrix, -np.inf, self.limits)]
            if self.equal.shape[0]:
                constraints.append(LinearConstraint(self.equal, 0, 0))
            solved = milp(
                variables.cost, integrality=integral, bounds=Bounds(low, high), constraints=constraints,
                options={"time_limit": self.left, "mip_rel_gap": 1e-7},
            )  # fmt: skip
            if solved.status == 2:  # infeasible: nothing better is left
                self.bound = known
                return
            if solved.mip_dual_bound is not None:
                self.bound = max(self.bound, min(known, float(solved.mip_dual_bound)))
            if solved.x is None:
                return
            self.try_answer(solved.x)
            cuts = variables.cuts(solved.x, self.most)
            if cuts is None:
                return
            self.add(cuts)
