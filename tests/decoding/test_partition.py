"""The integer program against brute force, against its own constraints spelled out, and under limits."""

from functools import partial
from itertools import combinations, product

import numpy as np
import pytest

from pose.decoding import partition_exact, partition_program
from pose.decoding.partition import NONE, Partition, Problem
from pose.decoding.partition_exact import components, solve
from pose.decoding.partition_search import contracted, local_search
from pose.decoding.partition_stages import solve_in_stages

AMPLE = 30.0
"""Seconds that no test needs."""


def problem_of(candidates, labels, seed, spread=2.0):
    """Random costs; each candidate has 1 to `labels` options."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(candidates), rng.integers(1, labels + 1, candidates))
    pair = np.triu(rng.normal(0, spread, (len(owner), len(owner))), 1)
    pair = np.where(owner[:, None] == owner, 0.0, pair + pair.T)
    return Problem(owner, rng.normal(0.3, spread, len(owner)), pair)


def crowd(candidates, seed, people=3, parts=14, labels=1):
    """People whose joints attract one another, among false candidates, all with independent noise on every pair."""
    rng = np.random.default_rng(seed)
    slots = [p for p in range(people) for _ in range(parts) if rng.random() > 0.1]
    of = np.array([p for p in slots for _ in range(1 + (rng.random() < 0.3))] + [NONE] * candidates)[:candidates]
    of = np.repeat(rng.permutation(of), labels)
    owner = np.repeat(np.arange(candidates), labels)
    right = np.tile(np.arange(labels) == 0, candidates) & (of != NONE)
    unary = np.where(right, -1.5, 1.0) + rng.normal(0, 1, len(owner))
    together = (of[:, None] == of) & right & right[:, None]
    pair = np.triu(np.where(together, -2.0, 2.0) + rng.normal(0, 1.5, together.shape), 1)
    return Problem(owner, unary, np.where(owner[:, None] == owner, 0.0, pair + pair.T))


def brute_force(problem):
    """Least value over every choice of options and every partition, one candidate after the other."""

    def least(candidate, people):
        if candidate == problem.size:
            return 0.0
        best = least(candidate + 1, people)
        for option in np.flatnonzero(problem.owner == candidate):
            for number, person in enumerate([*people, []]):
                cost = problem.unary[option] + problem.pair[option, person].sum()
                rest = [*people[:number], [*person, option], *people[number + 1 :]]
                best = min(best, cost + least(candidate + 1, rest))
        return best

    return least(0, [])


def spelled_out(problem):
    """Least objective over all binary x, y, z that keep DeepCut's constraints as the paper writes them."""
    d, n = problem.size, len(problem.owner)
    pairs, options = list(combinations(range(d), 2)), list(combinations(range(n), 2))
    options = [(i, j) for i, j in options if problem.owner[i] != problem.owner[j]]
    best = np.inf
    for x in product((0, 1), repeat=n):
        taken = np.bincount(problem.owner, weights=x, minlength=d)
        if (taken > 1).any():
            continue
        for bits in product((0, 1), repeat=len(pairs)):
            y = np.zeros((d, d))
            for (a, b), bit in zip(pairs, bits, strict=True):
                y[a, b] = y[b, a] = bit
            if any(y[a, b] > min(taken[a], taken[b]) for a, b in pairs):
                continue
            if any(y[a, b] + y[b, c] - 1 > y[a, c] for a, b, c in product(range(d), repeat=3) if len({a, b, c}) == 3):
                continue
            cost = float(np.dot(problem.unary, x))
            for i, j in options:
                link = y[problem.owner[i], problem.owner[j]]
                allowed = [z for z in (0, 1) if x[i] + x[j] + link - 2 <= z and z <= x[i] and z <= x[j] and z <= link]
                assert len(allowed) == 1
                cost += problem.pair[i, j] * allowed[0]
            best = min(best, cost)
    return best


def check(problem, answer):
    """The answer is one: each candidate takes an option of its own, people are numbered, the value is theirs."""
    taken = answer.option != NONE
    assert np.array_equal(taken, answer.person != NONE)
    assert np.array_equal(problem.owner[answer.option[taken]], np.flatnonzero(taken))
    assert set(answer.person[taken].tolist()) == set(range(answer.people))
    value = 0.0
    for a in np.flatnonzero(taken):
        value += problem.unary[answer.option[a]]
        for b in range(a):
            if answer.person[a] == answer.person[b]:
                value += problem.pair[answer.option[a], answer.option[b]]
    assert answer.value == pytest.approx(value, abs=1e-6)
    assert answer.bound <= answer.value + 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_brute_force_is_the_papers_program(seed):
    problem = problem_of(4, 2, seed)
    assert brute_force(problem) == pytest.approx(spelled_out(problem), abs=1e-9)


@pytest.mark.parametrize(("candidates", "labels"), [(1, 3), (2, 2), (5, 1), (6, 1), (5, 2), (4, 3)])
@pytest.mark.parametrize("seed", range(6))
def test_the_exact_solve_agrees_with_brute_force(candidates, labels, seed):
    problem = problem_of(candidates, labels, 100 * seed + candidates)
    answer, wanted = solve(problem, AMPLE), brute_force(problem)
    check(problem, answer)
    assert answer.value == pytest.approx(wanted, abs=1e-6)
    assert answer.gap == 0


def test_the_local_search_nearly_always_agrees_with_brute_force_and_never_claims_better():
    misses = 0
    for seed in range(20):
        problem = problem_of(5, 2, seed)
        answer, wanted = local_search(problem), brute_force(problem)
        check(problem, answer)
        assert answer.value >= wanted - 1e-9
        assert answer.bound <= wanted + 1e-9
        misses += answer.value > wanted + 1e-9
    assert misses <= 2


@pytest.mark.parametrize(("candidates", "labels"), [(30, 1), (60, 1), (100, 1), (30, 2)])
def test_optima_of_crowds_are_proven_and_the_local_search_is_near(candidates, labels):
    problem = crowd(candidates, seed=3, labels=labels)
    near, best = local_search(problem), solve(problem, AMPLE)
    check(problem, near)
    check(problem, best)
    assert best.gap == 0
    assert best.value <= near.value + 1e-6 <= 0.995 * best.value


def test_transitivity_added_when_broken_is_transitivity_of_the_whole(monkeypatch):
    """With one constraint a round instead of thousands the optimum is the same."""
    problem = crowd(16, seed=5)
    wanted = solve(problem, AMPLE).value
    monkeypatch.setattr(partition_exact, "CUTS", 0.1)
    assert solve(problem, AMPLE).value == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("block", [4_000_000, 50, 1])
def test_the_transitivity_that_is_broken_is_found_whatever_the_block(monkeypatch, block):
    monkeypatch.setattr(partition_program, "BLOCK", block)
    problem = problem_of(9, 2, seed=3)
    rng = np.random.default_rng(0)
    x, y = rng.random(9), np.triu(rng.random((9, 9)), 1)
    y = y + y.T
    program = partition_program.Program.of(problem)
    broken = [
        (b, a, c) for b, (a, c) in product(range(9), combinations(range(9), 2))
        if y[a, b] + y[b, c] - y[a, c] > x[b] + partition_program.VIOLATED
    ]  # fmt: skip
    wanted = np.zeros((len(broken), len(program.cost)))
    for row, (b, a, c) in enumerate(broken):
        wanted[row, [program.y_of[a, b], program.y_of[b, c]]] = 1
        wanted[row, program.y_of[a, c]] = -1
        wanted[row, np.flatnonzero(problem.owner == b)] = -1
    assert 0 < len(broken) < 9 * 36
    assert np.array_equal(program.transitivity(x, y, 1000).toarray(), wanted)


def test_fractional_programs_are_branched_to_the_optimum(monkeypatch):
    """Noise without people: the linear program alone proves little here."""
    branched = []
    branch = partition_exact._Search.branch

    def watched(self, *bounds):
        branched.append(self.best.gap)
        branch(self, *bounds)

    monkeypatch.setattr(partition_exact._Search, "branch", watched)
    for seed in range(8):
        problem = problem_of(8, 1, seed, spread=4.0)
        problem = Problem(problem.owner, np.full(8, -0.1), problem.pair)
        answer = solve(problem, AMPLE)
        assert answer.value == pytest.approx(brute_force(problem), abs=1e-6)
        assert answer.gap == 0
    assert branched
    assert min(branched) > 0


def test_no_time_gives_the_local_search_and_an_honest_gap():
    problem = crowd(100, seed=1)
    best = solve(problem, AMPLE)
    for limit in (0.0, 0.02):
        answer = solve(problem, limit)
        check(problem, answer)
        assert answer.bound <= best.value <= answer.value
        assert 0 < answer.gap < 1
        assert answer.value <= 0.99 * best.value
    assert best.gap == 0


def test_nothing_to_decide():
    nobody = Problem(np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 0)))
    for answer in (local_search(nobody), solve(nobody, AMPLE)):
        assert (answer.value, answer.gap, answer.people, len(answer.option)) == (0, 0, 0, 0)
    unlikely = Problem(np.array([0, 1]), np.array([1.0, 2.0]), np.zeros((2, 2)))
    for answer in (local_search(unlikely), solve(unlikely, AMPLE)):
        assert answer.option.tolist() == answer.person.tolist() == [NONE, NONE]
        assert answer.gap == 0


def test_a_pair_that_pays_only_together_is_taken_and_one_that_never_pays_is_not():
    pair = np.array([[0.0, -3.0, 0.0], [-3.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    problem = Problem(np.arange(3), np.array([1.0, 1.0, 1.0]), pair)
    for answer in (local_search(problem), solve(problem, AMPLE)):
        assert answer.option.tolist() == [0, 1, NONE]
        assert answer.person.tolist() == [0, 0, NONE]
        assert answer.value == pytest.approx(-1)
    weak = Problem(np.arange(3), np.array([1.0, 1.0, 1.0]), pair / 2)
    assert local_search(weak).people == solve(weak, AMPLE).people == 0


def test_contraction_joins_the_most_attractive_first():
    """0 and 1 belong together; 2 likes 1, but both of them dislike it more."""
    pair = np.array([[0.0, -3.0, 2.5], [-3.0, 0.0, -2.0], [2.5, -2.0, 0.0]])
    problem = Problem(np.arange(3), np.zeros(3), pair)
    assert contracted(problem, np.arange(3)).tolist() == [0, 0, 2]


def test_people_who_do_not_attract_are_solved_apart():
    parts = [crowd(12, seed=1, people=1), crowd(15, seed=2, people=1)]
    size = sum(part.size for part in parts)
    pair = np.full((size, size), 1.5)
    pair[:12, :12], pair[12:, 12:] = (part.pair for part in parts)
    both = Problem(np.arange(size), np.concatenate([part.unary for part in parts]), pair)
    sets = components(both)
    assert not any(set(options) & set(range(12)) and set(options) - set(range(12)) for options in map(list, sets))
    wanted = sum(solve(part, AMPLE).value for part in parts)
    assert solve(both, AMPLE).value == pytest.approx(wanted, abs=1e-6)


def test_stages_keep_what_they_decided_and_never_merge_people():
    problem = crowd(40, seed=2, people=2)
    early = np.arange(40) % 3 == 0
    answer, gaps = solve_in_stages(problem, [early, ~early], partial(solve, time_limit=AMPLE))
    check(problem, answer)
    assert gaps == [0, 0]
    first = solve(problem.restricted(np.flatnonzero(early)), AMPLE)
    together = answer.person[np.flatnonzero(early)]
    for a, b in combinations(np.flatnonzero(first.option != NONE), 2):
        assert (first.person[a] == first.person[b]) == (together[a] == together[b])
    whole = solve(problem, AMPLE)
    assert whole.value - 1e-6 <= answer.value < 0
    assert answer.bound <= whole.value


def test_one_stage_is_the_whole_problem():
    problem = crowd(30, seed=4, labels=2)
    answer, _ = solve_in_stages(problem, [np.ones(60, bool)], partial(solve, time_limit=AMPLE))
    assert answer.value == pytest.approx(solve(problem, AMPLE).value, abs=1e-6)


@pytest.mark.parametrize(
    ("value", "bound", "gap"), [(-100.0, -100.0, 0.0), (-99.0, -100.0, 0.01), (0.0, 0.0, 0.0), (0.0, -0.5, 0.5)]
)
def test_the_gap_is_a_share_of_the_bound(value, bound, gap):
    assert Partition(np.zeros(0, int), np.zeros(0, int), value, bound).gap == pytest.approx(gap)
