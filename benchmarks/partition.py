"""DeepCut's integer program over 40 to 100 candidate joints: local search, and the exact solve to a proven optimum.

    python -m benchmarks.partition

local   `pose.decoding.partition_search.local_search`: seconds, and how far its value is above the optimum
exact   `pose.decoding.partition_exact.solve`: seconds until the gap is 0, local search included where it is needed, and
        the gap that is left where a minute was not enough

Scenes have three people of 14 joints, one joint in ten missing, some found twice, and for the rest false candidates,
with independent noise on every pair: harder than pictures, whose clutter is spatially consistent. Beside them the
program with all transitivity constraints from the start, as the paper writes it, at 40 candidates: what adding only
the broken ones saves. One thread, processor time, medians over the seeds. JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import combinations
from typing import Any, TypeVar

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from pose.decoding.partition import NONE, Problem
from pose.decoding.partition_exact import solve
from pose.decoding.partition_search import local_search
from pose.progress import say, track

T = TypeVar("T")
SIZES = (40, 60, 80, 100)
PEOPLE, JOINTS = 3, 14
LIMIT = 60.0
"""Seconds given to the exact solve."""
WRITTEN_OUT = 40
"""Candidates of the comparison with all constraints."""
EXPECTED = {"local_100": 0.1, "exact_60": 0.03, "exact_100": 1.0}
"""Seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    print(json.dumps(compare(arguments.seeds), indent=2))


def compare(seeds: int) -> dict:
    """Seconds and gaps per number of candidates, and whether they are what is expected."""
    solve(scene(20, 0), LIMIT)  # what is loaded at the first call is not the program's
    sizes = {str(size): _measure(size, seeds) for size in SIZES}
    whole = scene(WRITTEN_OUT, 0)
    written, all_seconds = _timed(lambda: written_out(whole))
    lazily, lazy_seconds = _timed(lambda: solve(whole, LIMIT))
    assert abs(written - lazily.value) < 1e-4, f"{written} with all constraints, {lazily.value} without"
    ratio = all_seconds / lazy_seconds
    say(f"{WRITTEN_OUT} candidates, all constraints at once: {all_seconds:.2f} s, {ratio:.0f} times as long")
    found = {
        "local_100": sizes["100"]["local_s"],
        "exact_60": sizes["60"]["exact_s"],
        "exact_100": sizes["100"]["exact_s"],
    }
    return {
        "expected": EXPECTED,
        "reached": {name: found[name] <= limit for name, limit in EXPECTED.items()},
        "candidates": sizes,
        f"all_constraints_{WRITTEN_OUT}": {
            "ratio": round(ratio, 1),
            "all_s": round(all_seconds, 3),
            "lazy_s": round(lazy_seconds, 3),
        },
    }


def _measure(size: int, seeds: int) -> dict[str, Any]:
    near, exact, above, gaps = [], [], [], []
    for seed in track(range(seeds), f"{size} candidates"):
        problem = scene(size, seed)
        local, seconds = _timed(lambda problem=problem: local_search(problem))
        near.append(seconds)
        best, seconds = _timed(lambda problem=problem: solve(problem, LIMIT))
        exact.append(seconds)
        above.append((local.value - best.value) / abs(best.value))
        gaps.append(best.gap)
    result = {
        "local_s": round(statistics.median(near), 4),
        "local_above_optimum": {"median": round(statistics.median(above), 6), "worst": round(max(above), 6)},
        "exact_s": round(statistics.median(exact), 4),
        "exact_worst_s": round(max(exact), 4),
        "gap": max(gaps),
        "proven": sum(gap == 0 for gap in gaps),
        "of": seeds,
    }
    say(
        f"{size:>4} candidates: local search {result['local_s']:.3f} s, at worst {max(above):.3%} above the optimum; "
        f"exact {result['exact_s']:.3f} s, at worst {max(exact):.3f} s, {result['proven']} of {seeds} proven"
    )
    return result


def _timed(run: Callable[[], T]) -> tuple[T, float]:
    began = time.process_time()
    return run(), time.process_time() - began


def scene(candidates: int, seed: int) -> Problem:
    """People whose joints attract one another, among false candidates."""
    rng = np.random.default_rng(seed)
    slots = [person for person in range(PEOPLE) for _ in range(JOINTS) if rng.random() > 0.1]
    found = [person for person in slots for _ in range(1 + (rng.random() < 0.3))]
    of = rng.permutation(np.array((found + [NONE] * candidates)[:candidates]))
    together = (of[:, None] == of) & (of != NONE)
    pair = np.triu(np.where(together, -2.0, 2.0) + rng.normal(0, 1.5, together.shape), 1)
    unary = np.where(of != NONE, -1.5, 1.0) + rng.normal(0, 1, candidates)
    return Problem(np.arange(candidates), unary, pair + pair.T)


def written_out(problem: Problem) -> float:
    """The optimum from the program with every constraint of the paper; one option per candidate, so that z is y."""
    size = problem.size
    pairs = list(combinations(range(size), 2))
    column = {pair: size + number for number, pair in enumerate(pairs)}
    rows: list[tuple[dict[int, float], float]] = []
    for (a, b), y in column.items():
        rows += [({y: 1, a: -1}, 0), ({y: 1, b: -1}, 0)]
    for a, b, c in combinations(range(size), 3):
        for one, two, three in ((a, b, c), (a, c, b), (b, a, c)):
            # one and two, two and three: then one and three.
            first, second, third = (column[min(p), max(p)] for p in ((one, two), (two, three), (one, three)))
            rows.append(({first: 1, second: 1, third: -1}, 1))
    number = np.repeat(np.arange(len(rows)), [len(row) for row, _ in rows])
    columns = [index for row, _ in rows for index in row]
    values = [value for row, _ in rows for value in row.values()]
    matrix = csr_array((values, (number, columns)), shape=(len(rows), size + len(pairs)))
    cost = np.concatenate([problem.unary, [problem.pair[a, b] for a, b in pairs]])
    limits = np.array([limit for _, limit in rows])
    solved = milp(
        cost, integrality=np.ones(len(cost)), bounds=Bounds(0, 1), constraints=LinearConstraint(matrix, -np.inf, limits)
    )
    return float(solved.fun)


if __name__ == "__main__":
    main()
