"""DeeperCut's incremental inference: some kinds of joints first, whose people are then kept together, then more.

Source: Insafutdinov et al., ECCV 2016, section 5: head and shoulders, then elbows and wrists, then the rest. Each stage
is a smaller program; what it decides is not undone, so the result is not the optimum of the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pose.decoding.partition import NONE, Partition, Problem


def solve_in_stages(
    problem: Problem, stages: Sequence[np.ndarray], solve: Callable[[Problem], Partition]
) -> tuple[Partition, list[float]]:
    """The answer with its bound for the whole problem, and each stage's own gap.

    stages: [N] masks of the options that come in with each stage; together all options. A candidate with options in
    several stages is decided in the first of them that takes it.
    """
    option, person = np.full(problem.size, NONE), np.full(problem.size, NONE)
    gaps = []
    for entering in stages:
        fresh = np.flatnonzero(entering & (option[problem.owner] == NONE))
        held, part = _with_people(problem, option, person, fresh)
        answer = solve(part)
        gaps.append(answer.gap)
        option, person = _released(problem, option, person, fresh, held, part, answer)
    value = problem.value(option, person)
    return Partition(option, person, value, min(problem.bound(), value)), gaps


def _with_people(
    problem: Problem, option: np.ndarray, person: np.ndarray, fresh: np.ndarray
) -> tuple[list[np.ndarray], Problem]:
    """Options of each person so far, and a problem in which these are candidates with one option, before the fresh."""
    held = [option[person == number] for number in range(int(person.max(initial=NONE)) + 1)]
    count = len(held)
    member = np.zeros((count, len(problem.owner)))
    for number, options in enumerate(held):
        member[number, options] = 1
    towards = member @ problem.pair
    inside = (towards * member).sum(axis=1) / 2
    unary = np.concatenate([member @ problem.unary + inside, problem.unary[fresh]])
    pair = np.zeros((len(unary), len(unary)))
    pair[:count, count:] = towards[:, fresh]
    pair[count:, :count] = towards[:, fresh].T
    pair[count:, count:] = problem.pair[np.ix_(fresh, fresh)]
    # Two people never become one: that would cost more than everything else can gain.
    forbidden = 1 + np.abs(unary).sum() + np.abs(pair).sum()
    pair[:count, :count] = forbidden * (1 - np.eye(count))
    owner = np.unique(problem.owner[fresh], return_inverse=True)[1].astype(np.int64)
    return held, Problem(np.concatenate([np.arange(count), count + owner]), unary, pair)


def _released(
    problem: Problem,
    option: np.ndarray,
    person: np.ndarray,
    fresh: np.ndarray,
    held: list[np.ndarray],
    part: Problem,
    answer: Partition,
) -> tuple[np.ndarray, np.ndarray]:
    """The answer to `part` in terms of the whole problem."""
    option, person = option.copy(), np.full_like(person, NONE)
    for number, options in enumerate(held):
        members = problem.owner[options]
        person[members] = answer.person[number]
        if answer.option[number] == NONE:  # only somebody who is worth nothing
            option[members] = NONE
    taken = answer.option[len(held) :]
    chosen = fresh[taken[taken != NONE] - len(held)]
    option[problem.owner[chosen]] = chosen
    person[problem.owner[chosen]] = answer.person[len(held) :][taken != NONE]
    return option, person
