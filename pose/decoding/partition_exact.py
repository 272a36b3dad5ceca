"""The partition and labelling program solved to a proven optimum, or as near to it as a time limit allows.

Linear program first, with the transitivity constraints that it violates added round by round; then, where its answer is
fractional, the integer program over what reduced costs leave open, again with violated constraints added. Every bound
on the way is kept, so that whatever happens the answer comes with its gap. HiGHS does the work, through scipy.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array, vstack
from scipy.sparse.csgraph import connected_components

from pose.decoding.partition import NONE, Partition, Problem
from pose.decoding.partition_program import Program
from pose.decoding.partition_search import local_search

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
        answer = local_search(part) if time_limit <= 0 else _Search(part, deadline).run()
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


class _Search:
    """One connected problem, its best answer so far and the best bound."""

    def __init__(self, problem: Problem, deadline: float) -> None:
        self.problem, self.deadline = problem, deadline
        self.best = Partition(np.full(problem.size, NONE), np.full(problem.size, NONE), 0.0, problem.bound())
        self.program = Program.of(problem)
        self.matrix, self.limits, self.equal = self.program.rows()
        self.most = max(1, int(CUTS * problem.size))

    @property
    def left(self) -> float:
        """Seconds; HiGHS takes no limit of 0."""
        return max(self.deadline - time.monotonic(), 1e-3)

    @property
    def over(self) -> bool:
        """Nothing is left to prove, or no time to prove it."""
        return self.best.gap == 0 or time.monotonic() >= self.deadline

    def run(self) -> Partition:
        """Linear program, then integer program; the local search unless the linear program's answer is whole."""
        relaxed = self.relax()
        if relaxed is None:
            self.offer(local_search(self.problem))
        elif not self.over:
            self.branch(*self.settled(relaxed))
        return self.best

    def offer(self, found: Partition) -> None:
        """Takes over a better answer."""
        if found.value < self.best.value:
            self.best = Partition(found.option, found.person, found.value, min(self.best.bound, found.value))

    def raise_bound(self, bound: float) -> None:
        """Takes over a better bound; none is above the best answer."""
        if np.isfinite(bound):
            self.best = replace(self.best, bound=min(max(self.best.bound, bound), self.best.value))

    def try_answer(self, values: np.ndarray) -> None:
        """Takes over the answer nearest to a solution; unless it is optimal, also what a local search makes of it."""
        option, person = self.program.answer(values)
        nearest = Partition(option, person, self.problem.value(option, person), -np.inf)
        self.offer(nearest)
        if self.best.gap > 0:
            self.offer(local_search(self.problem, nearest))

    def add(self, rows: csr_array) -> None:
        """More inequalities with 0 on their right."""
        self.matrix = csr_array(vstack([self.matrix, rows]))
        self.limits = np.concatenate([self.limits, np.zeros(rows.shape[0])])

    def relax(self) -> Any:
        """The linear program with all the transitivity it needs, as scipy solves it; None out of time."""
        cuts = self.program.first_cuts(self.most)
        while True:
            if cuts is not None:
                self.add(cuts)
            equal = {"A_eq": self.equal, "b_eq": np.zeros(self.equal.shape[0])} if self.equal.shape[0] else {}
            solved = linprog(
                self.program.cost, self.matrix, self.limits, **equal, bounds=(0, 1), method="highs",
                options={"time_limit": self.left, "presolve": False},  # costs more than it saves
            )  # fmt: skip
            if solved.status != 0:
                return None
            self.raise_bound(float(solved.fun))
            cuts = self.program.cuts(solved.x, self.most)
            if cuts is None:
                self.try_answer(solved.x)
                return solved
            if time.monotonic() >= self.deadline:
                return None

    def settled(self, solved: Any) -> tuple[np.ndarray, np.ndarray]:
        """Bounds [columns] of variables in any better answer, by reduced costs; keeps the tight constraints alone."""
        slack = self.best.value - solved.fun + SETTLED
        low = (-solved.upper.marginals > slack).astype(float)
        high = (~(solved.lower.marginals > slack)).astype(float)
        base, limits, _ = self.program.rows()
        tight = solved.slack <= TIGHT
        tight[: base.shape[0]] = False
        self.matrix = csr_array(vstack([base, self.matrix[tight]]))
        self.limits = np.concatenate([limits, self.limits[tight]])
        return low, high

    def branch(self, low: np.ndarray, high: np.ndarray) -> None:
        """Solves the integer program within these bounds; everything outside is no better than what is known."""
        program, known = self.program, self.best.value
        integral = np.ones(len(program.cost))
        integral[program.first_z :] = 0  # z follows from x and y
        while not self.over:
            constraints = [LinearConstraint(self.matrix, -np.inf, self.limits)]
            if self.equal.shape[0]:
                constraints.append(LinearConstraint(self.equal, 0, 0))
            solved = milp(
                program.cost, integrality=integral, bounds=Bounds(low, high), constraints=constraints,
                options={"time_limit": self.left, "mip_rel_gap": 1e-7},
            )  # fmt: skip
            if solved.status == 2:  # infeasible: nothing better is left
                self.raise_bound(known)
                return
            if solved.mip_dual_bound is not None:
                self.raise_bound(min(known, float(solved.mip_dual_bound)))
            if solved.x is None:
                return
            self.try_answer(solved.x)
            cuts = program.cuts(solved.x, self.most)
            if cuts is None:
                return
            self.add(cuts)
