"""`python -m pose.training SPEC.json`: one training as a program of its own, for jobs on a cluster."""

from __future__ import annotations

import sys
from pathlib import Path

from pose.errors import ConfigError, PoseError
from pose.progress import say
from pose.training import run
from pose.training.spec import TrainingSpec


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    try:
        if len(arguments) != 1 or not Path(arguments[0]).is_file():
            raise ConfigError(f"usage: python -m pose.training SPEC.json (got {' '.join(arguments) or 'nothing'})")
        outcome = run(TrainingSpec.load(Path(arguments[0])))
    except PoseError as error:
        say(str(error))
        return error.exit_code
    print(outcome.run_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
