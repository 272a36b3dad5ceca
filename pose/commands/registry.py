"""`pose registry`: registered models, their champions, and how they came to be."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pose.commands.options import Json, Profile, Set, load_params, require_no_systems
from pose.commands.output import print_json, print_table

if TYPE_CHECKING:
    from pose.evaluation import Evaluation
    from pose.registry import Registry, Version

app = typer.Typer(no_args_is_help=True, help="Registered models: champions, promotion, rollback, lineage.")

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A registered model, as in `pose registry list`.")]
Reference = Annotated[str, typer.Argument(metavar="REFERENCE", help="NAME@ALIAS, NAME/VERSION or NAME: its champion.")]


@app.command("list")
def list_(profile: Profile = None, set_: Set = None, json: Json = False) -> None:
    """Every registered model with its number of versions and its champion.

    Example: `pose registry list --json`
    """
    models = _registry(profile, set_).list()
    if json:
        print_json([asdict(model) for model in models])
        return
    rows = [(m.name, m.versions, m.latest, m.champion, m.previous) for m in models]
    numbers = ("versions", "latest", "champion", "previous")
    print_table("registered models", ("model", *numbers), rows, right=numbers)


@app.command()
def show(
    model: Model,
    compare: Annotated[
        list[str] | None,
        typer.Option("--compare", metavar="REFERENCE", help="Hold the champion (or NAME/VERSION) against these."),
    ] = None,
    profile: Profile = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """All versions of one model with their aliases, headline metric, data and commit; or its figures beside others'.

    Figures of different protocols (data, split, boxes, flip test, scales, sigmas, NMS, evaluator) are not compared
    (exit code 6). Example: `pose registry show pose-vgg19`, `pose registry show pose-vgg19 --compare pose-alexnet/3`
    """
    if compare:
        _compare(_registry(profile, set_), [model, *compare], json)
        return
    versions = _registry(profile, set_).show(model)
    metric = load_params(profile, set_).promotion.metric
    if json:
        print_json(
            [
                {
                    **asdict(version),
                    "metrics": version.metrics,
                    "protocol": _protocol(version, metric),
                    "protocols": {name: _protocol(version, name) for name in version.metrics},
                }
                for version in versions
            ]
        )
        return
    rows = [
        (v.version, ", ".join(v.aliases), _number(v.metrics.get(metric)), _protocol(v, metric), v.tags.get("dataset"),
         v.tags.get("data_hash", "")[:12], v.fingerprint[:12], v.tags.get("git_commit", "")[:12])
        for v in versions
    ]  # fmt: skip
    columns = ("version", "aliases", metric, "protocol", "dataset", "data", "fingerprint", "commit")
    print_table(model, columns, rows, right=("version", metric))


def _compare(registry: Registry, references: list[str], json: bool) -> None:
    table = registry.compare(references)
    versions = [registry.resolve(reference) for reference in table.models]
    # All who have a figure have it by one protocol, or they would not be compared.
    protocols = {name: next(filter(None, (_protocol(v, name) for v in versions)), "") for name in table.figures}
    if json:
        print_json(asdict(table) | {"protocols": protocols})
        return
    rows = [(name, *(_number(value) for value in values), protocols[name]) for name, values in table.figures.items()]
    print_table("the same protocol", ("metric", *table.models, "protocol"), rows, right=table.models)


@app.command()
def promote(
    model: Model,
    version: Annotated[int, typer.Argument(metavar="VERSION", help="The challenger.")],
    why: Annotated[str, typer.Option(help="The reason, for the ledger.")] = "promoted by hand",
    profile: Profile = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Make a version the champion if it is proved better on the same test images; say why either way.

    A paired bootstrap decides; a champion that was measured on other images, or in other boxes, is measured again (in
    boxes: those of `evaluation.detections`).
    Example: `pose registry promote pose-vgg19 4 --why "more data"`
    """
    require_no_systems(set_ or [])
    registry = _registry(profile, set_)
    params = load_params(profile, set_)
    dataset = registry.resolve(f"{model}/{version}").tags.get("dataset", params.dataset)

    def reevaluate(bundle: Path) -> Evaluation:
        from pose.commands.models import evaluate_folder

        return evaluate_folder(bundle, dataset, params, params.detections_path)

    from pose.registry import whoami

    decision = registry.promote(model, version, params.promotion, whoami(), why, reevaluate)
    if json:
        print_json(asdict(decision))
    else:
        verdict = "is champion now" if decision.promoted else "was not promoted"
        typer.echo(f"{model} version {version} {verdict}: {decision.reason}")


@app.command()
def rollback(
    model: Model,
    why: Annotated[str, typer.Option(help="The reason, for the ledger.")],
    to: Annotated[int | None, typer.Option(help="To this earlier version instead of the champion before.")] = None,
    profile: Profile = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Give the alias `champion` back to the champion before.

    Example: `pose registry rollback pose-lspet --why "fails on night pictures"`
    """
    from pose.registry import whoami

    entry = _registry(profile, set_).rollback(model, whoami(), why, to)
    if json:
        print_json(asdict(entry))
    else:
        typer.echo(f"{model}: champion is version {entry.to_version} again, it was {entry.from_version}")


@app.command()
def history(model: Model, profile: Profile = None, set_: Set = None, json: Json = False) -> None:
    """Every move of a model's champion: when, who, why, from which version to which.

    Example: `pose registry history pose-lspet`
    """
    entries = _registry(profile, set_).history(model)
    if json:
        print_json([asdict(entry) for entry in entries])
        return
    rows = [(e.when, e.action, e.from_version, e.to_version, e.who, e.why) for e in entries]
    print_table(model, ("when", "action", "from", "to", "who", "why"), rows, right=("from", "to"))


@app.command()
def trace(reference: Reference, profile: Profile = None, set_: Set = None, json: Json = False) -> None:
    """Where a model comes from: data, parameters, commit, lock, run, files, and the command that makes it again.

    Example: `pose registry trace pose-lspet@champion`
    """
    import yaml

    lineage = _registry(profile, set_).trace(reference)
    if json:
        print_json(lineage)
    else:
        typer.echo(yaml.safe_dump(lineage, sort_keys=False, allow_unicode=True), nl=False)


@app.command()
def sync(profile: Profile = None, set_: Set = None, json: Json = False) -> None:
    """Log to MLflow what was recorded while it could not be reached, and close runs whose process is gone.

    Example: `MLFLOW_TRACKING_URI=http://mlflow:5000 pose registry sync`
    """
    runs = _registry(profile, set_).sync()
    if json:
        print_json(runs)
    else:
        typer.echo(f"{len(runs)} runs are complete in MLflow" + "".join(f"\n  {run}" for run in runs))


def _registry(profile: str | None, set_: list[str] | None) -> Registry:
    from pose.registry import Registry

    return Registry(load_params(profile, set_).storage_path)


def _protocol(version: Version, metric: str) -> str:
    protocol = version.protocol_of(metric)
    return "" if protocol is None else protocol.id


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
