"""The loop from end to end in one process."""

from __future__ import annotations

import pose.training


def test_it_learns_and_leaves_everything(spec):
    outcome = pose.training.run(spec())
    assert outcome.epochs == 3
