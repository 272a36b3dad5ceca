"""Local search for the partition and labelling program: always an answer, at once, mostly the best one.

Greedy additive contraction, then moves of single candidates with their labels, joins of people, and Kernighan-Lin
chains over everyone and between two people, until none of them improves.

Sources: Keuper et al., ICCV 2015 (contraction, Kernighan-Lin with joins); Levinkov et al., CVPR 2017 (with labels).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pose.decoding.partition import NONE, Partition, Problem, renumbered

WORTH = 1e-9
"""Least improvement of the value that counts as one."""


def local_search(problem: Problem, start: Partition | None = None) -> Partition:
    """The best answer that the moves reach from a few starts, and from `start`; never worse than nobody at all."""
    bound = problem.bound()
    best = Partition(np.full(problem.size, NONE), np.full(problem.size, NONE), 0.0, bound)
    for state in _starts(problem, start):
        state.improve()
        value = problem.value(state.option, state.person)
        if value < best.value - WORTH:
            best = replace(best, option=state.option.copy(), person=renumbered(state.person), value=value)
    return best


def _starts(problem: Problem, start: Partition | None) -> list[_State]:
    """Contracted from all candidates at their best options, from those that are likely by themselves, and `start`."""
    if not problem.size:
        return []
    order = np.lexsort((problem.unary, problem.owner))
    best = order[problem.first]
    states = []
    for taken in (np.ones(problem.size, bool), problem.unary[best] < 0):
        option = np.where(taken, best, NONE)
        states.append(_State(problem, option, contracted(problem, option)))
    if start is not None:
        states.append(_State(problem, start.option.copy(), start.person.copy()))
    return states


def contracted(problem: Problem, option: np.ndarray) -> np.ndarray:
    """Greedy additive contraction: [D] people, joined two by two while the most attractive join has a negative cost."""
    taken = np.flatnonzero(option != NONE)
    weights = problem.pair[np.ix_(option[taken], option[taken])].copy()
    np.fill_diagonal(weights, np.inf)
    group = np.arange(len(taken))
    while len(taken):
        a, b = divmod(int(weights.argmin()), len(taken))
        if not weights[a, b] < -WORTH:
            break
        weights[a] += weights[b]
        weights[:, a] = weights[a]
        weights[a, a] = weights[b] = weights[:, b] = np.inf
        group[group == group[b]] = group[a]
    person = np.full(problem.size, NONE)
    person[taken] = group
    return person


class _State:
    """An answer in motion. People are columns 0 to D, of which at least one is empty."""

    def __init__(self, problem: Problem, option: np.ndarray, person: np.ndarray) -> None:
        self.problem = problem
        self.settled: set[tuple[bytes, int]] = set()
        """Two people, by the options they have, between whom no exchange improves."""
        self._set(option, renumbered(person))

    def _set(self, option: np.ndarray, person: np.ndarray) -> None:
        self.option, self.person = option, person
        taken = np.flatnonzero(option != NONE)
        member = np.zeros((len(taken), self.problem.size + 1))
        member[np.arange(len(taken)), person[taken]] = 1
        self.joined = self.problem.pair[:, option[taken]] @ member
        """[N, D + 1]: cost of each option with each person, its own candidate apart."""
        self.columns = int(person.max(initial=NONE)) + 2
        """Those from here on are empty, and so is the one before."""

    def improve(self) -> None:
        """Until no kind of move improves the value."""
        self.descend()
        while self.join() or self.dissolve() or self.chain() or self.exchange():
            self.descend()

    def descend(self) -> None:
        """The best move of a single candidate, again and again while it improves."""
        while True:
            gain, candidate, option, person = self.best_move()
            if not gain < -WORTH:
                return
            self.move(candidate, option, person)

    def costs(self) -> np.ndarray:
        """[D], what each candidate adds to the value."""
        taken = self.option != NONE
        option, person = self.option[taken], self.person[taken]
        costs = np.zeros(len(taken))
        costs[taken] = self.problem.unary[option] + self.joined[option, person]
        return costs

    def best_move(self, movable: np.ndarray | None = None) -> tuple[float, int, int, int]:
        """Change of value, candidate, its option and person after it; only of `movable` [D] ones."""
        problem = self.problem
        costs = self.costs()
        change = self.joined[:, : self.columns] + (problem.unary - costs[problem.owner])[:, None]
        present = np.flatnonzero(self.option != NONE)
        change[self.option[present], self.person[present]] = np.inf
        leave = np.where(self.option != NONE, -costs, np.inf)
        if movable is not None:
            change[~movable[problem.owner]] = np.inf
            leave[~movable] = np.inf
        at, gone = int(change.argmin()), int(leave.argmin())
        option, person = divmod(at, self.columns)
        if leave[gone] <= change[option, person]:
            return float(leave[gone]), gone, NONE, NONE
        return float(change[option, person]), int(problem.owner[option]), option, person

    def move(self, candidate: int, option: int, person: int) -> None:
        """Gives a candidate another option, another person, or NONE of either."""
        before, left = int(self.option[candidate]), int(self.person[candidate])
        if before != NONE:
            self.joined[:, left] -= self.problem.pair[:, before]
        if option != NONE:
            self.joined[:, person] += self.problem.pair[:, option]
        self.option[candidate], self.person[candidate] = option, person
        if person == self.columns - 1:
            self.columns += 1
        if left != NONE and left != person and not (self.person == left).any():
            self._close(left)

    def _close(self, empty: int) -> None:
        """Puts the last person where nobody is left, so that the empty columns stay the last ones."""
        last = self.columns - 2
        self.joined[:, empty] = self.joined[:, last]
        self.joined[:, last] = 0
        self.person[self.person == last] = empty
        self.columns -= 1

    def join(self) -> bool:
        """Makes one person of two where that is the best such join and improves."""
        taken = np.flatnonzero(self.option != NONE)
        count = self.columns - 1
        if count < 2:
            return False
        between = np.zeros((count, count))
        np.add.at(between, self.person[taken], self.joined[self.option[taken], :count])
        np.fill_diagonal(between, np.inf)
        a, b = divmod(int(between.argmin()), count)
        if not between[a, b] < -WORTH:
            return False
        a, b = min(a, b), max(a, b)
        self.person[self.person == b] = a
        self.joined[:, a] += self.joined[:, b]
        self.joined[:, b] = 0
        if b != count - 1:
            self.joined[:, b] = self.joined[:, count - 1]
            self.joined[:, count - 1] = 0
            self.person[self.person == count - 1] = b
        self.columns -= 1
        return True

    def dissolve(self) -> bool:
        """Takes away a person who costs more than nobody."""
        for person in range(self.columns - 1):
            members = np.flatnonzero(self.person == person)
            chosen = self.option[members]
            cost = self.problem.unary[chosen].sum() + self.joined[chosen, person].sum() / 2
            if cost > WORTH:
                for member in members.tolist():
                    self.move(member, NONE, NONE)
                return True
        return False

    def chain(self) -> bool:
        """Kernighan-Lin over everyone: each candidate moves once, the best move first even where it costs.

        The best prefix stays, if it improves.
        """
        before = (self.option.copy(), self.person.copy(), self.joined.copy(), self.columns)
        movable = np.ones(len(self.option), bool)
        total, lowest, kept = 0.0, -WORTH, None
        for _ in range(len(movable)):
            gain, candidate, option, person = self.best_move(movable)
            if not np.isfinite(gain):
                break
            total += gain
            movable[candidate] = False
            self.move(candidate, option, person)
            if total < lowest:
                lowest, kept = total, (self.option.copy(), self.person.copy())
        if kept is None:
            self.option, self.person, self.joined, self.columns = before
            return False
        self._set(*kept)
        return True

    def exchange(self) -> bool:
        """A chain between two people who attract one another somewhere, or from one to a new one, that improves."""
        for a in range(self.columns - 1):
            mine = np.flatnonzero(self.person == a)
            for b in range(a + 1, self.columns):
                members = np.concatenate([mine, np.flatnonzero(self.person == b)])
                key = (self.option[members].tobytes(), len(mine))
                if key in self.settled or not self._attracted(mine, members[len(mine) :]):
                    continue
                moves = _Exchange(self.problem, self, members, (a, b)).run()
                if not moves:
                    self.settled.add(key)
                    continue
                option, person = self.option.copy(), self.person.copy()
                for candidate, to_option, side in moves:
                    option[candidate] = to_option
                    person[candidate] = NONE if to_option == NONE else (a, b)[side]
                self._set(option, renumbered(person))
                return True
        return False

    def _attracted(self, mine: np.ndarray, theirs: np.ndarray) -> bool:
        if not len(theirs):
            return len(mine) > 1
        return bool((self.problem.pair[np.ix_(self.option[mine], self.option[theirs])] < 0).any())


class _Exchange:
    """Kernighan-Lin between two people: their candidates move over, change their options, or leave."""

    def __init__(self, problem: Problem, state: _State, members: np.ndarray, people: tuple[int, int]) -> None:
        rows = np.flatnonzero(np.isin(problem.owner, members))
        self.rows, self.members = rows, np.unique(members)
        self.owner = np.searchsorted(self.members, problem.owner[rows])
        self.cost = state.joined[rows][:, people] + problem.unary[rows][:, None]
        """[R, 2] of each option with either person."""
        self.pair = problem.pair[np.ix_(rows, rows)]
        self.row = np.searchsorted(rows, state.option[self.members])
        self.side = (state.person[self.members] == people[1]).astype(np.int64)

    def run(self) -> list[tuple[int, int, int]]:
        """The moves of the best prefix: candidate, option or NONE, which of the two; none if nothing improves."""
        shut = np.zeros_like(self.cost)
        shut[self.row, self.side] = np.inf
        locked = np.zeros(len(self.members))
        total, lowest, kept = 0.0, -WORTH, 0
        moves: list[tuple[int, int, int]] = []
        for _ in range(len(self.members)):
            own = self.cost[self.row, self.side]
            change = self.cost - own[self.owner][:, None] + shut
            leave = locked - own
            at, gone = int(change.argmin()), int(leave.argmin())
            row, side = divmod(at, 2)
            if leave[gone] <= change[row, side]:
                member, gain = gone, leave[gone]
                moves.append((int(self.members[member]), NONE, 0))
            else:
                member, gain = int(self.owner[row]), change[row, side]
                moves.append((int(self.members[member]), int(self.rows[row]), side))
                self.cost[:, side] += self.pair[:, row]
            self.cost[:, self.side[member]] -= self.pair[:, self.row[member]]
            shut[self.owner == member] = np.inf
            locked[member] = np.inf
            total += gain
            if total < lowest:
                lowest, kept = total, len(moves)
        return moves[:kept]
