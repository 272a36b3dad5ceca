"""`pose train` and `pose train-all`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from pose.commands.options import Json, Profile, Set, load_params
from pose.commands.output import print_json
from pose.commands.systems import known_system


def train(
    system: Annotated[str, typer.Argument(metavar="SYSTEM", help="A name under `systems` in params.yaml.")],
    profile: Profile = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Train one architecture on the configured dataset, and say where its weights are.

    Data that is missing or outdated is prepared first. A finished training with the same fingerprint is reused, an
    interrupted one goes on from its last checkpoint. Example:
    `pose train vgg19 --profile demo --set training.ray.workers=2`
    """
    from flows.data import bring_up_to_date
    from flows.steps import Job
    from pose import fitting, training
    from pose.progress import say

    params = load_params(profile, set_)
    known_system(params, system)
    _ = params.systems[system].files  # what is missing is said before any data is prepared
    # The same specification as train-all's, so that each finds the other's trainings.
    spec = Job(system, params, bring_up_to_date(params.dataset), lineage={}).spec
    say(f"{spec.name} in {spec.run_dir}")
    training.say_where_crops_are_coarse(spec)
    outcome = training.run(spec)
    weights = fitting.fit(spec, outcome) / outcome.weights.name if fitting.needed(spec) else outcome.weights
    if json:
        facts = {key: value for key, value in asdict(outcome).items() if key != "history"}
        print_json(facts | {"weights": weights})
        return
    done = (
        f"{outcome.metric} {outcome.best_metric:.4f} in epoch {outcome.best_epoch} of {outcome.epochs}, "
        f"{outcome.seconds:.0f} s, {outcome.images_per_second:.0f} images/s"
        if outcome.best_metric is not None
        else "its initial weights as they are"
    )
    typer.echo(f"{system}: {done}\nweights: {weights}\nnext: pose evaluate {outcome.run_dir}")


def train_all(profile: Profile = None, set_: Set = None, json: Json = False) -> None:
    """Train, evaluate, export and register every architecture; promote what is surely better; write the report.

    What has not changed since an earlier run is skipped. An architecture that fails does not stop the others; it is
    named at the end, with exit code 4. Example: `pose train-all --profile demo`
    """
    import sys
    from contextlib import redirect_stdout

    from flows import server

    # Prefect's server takes as many seconds to start as we and MLflow take to import: side by side.
    with server.starting() as prefect:
        load_params(profile, set_)  # a mistake in it need not wait for the server
        from flows.train_all import train_all as flow
        from pose.registry.store import load_mlflow

        load_mlflow()
        # The flow prints its table; a script that asked for JSON gets that on standard error.
        with redirect_stdout(sys.stderr if json else sys.stdout), prefect.answering():
            summary = flow(profile, set_ or [])
    if json:
        print_json(asdict(summary))
