"""The command line: `pose --help` teaches the program.

Only names and help are imported here; whatever is heavy (torch, mlflow, ray, prefect) is imported inside the
command that needs it, so that help is quick.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pose.commands import config, data, registry, systems
from pose.commands.models import evaluate, export, import_
from pose.commands.predict import predict
from pose.commands.training import train, train_all
from pose.errors import PoseError


class PoseGroup(TyperGroup):
    """Prints an expected failure as one red paragraph and exits with its code; a bug keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the chosen command."""
        try:
            return super().invoke(ctx)
        except PoseError as error:
            typer.secho(f"{type(error).__name__}: {error}", fg=typer.colors.RED, err=True)
            raise typer.Exit(error.exit_code) from error


app = typer.Typer(
    cls=PoseGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"pose {version('pose')}")
        raise typer.Exit


@app.callback()
def pose(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Trains pose estimators every night and keeps the better one: archive → dataset → networks → metrics → champion.

    Every number comes from params.yaml; `--profile demo` lays infra/profiles/demo.yaml over it, and
    `--set training.ray.workers=2` changes one value. Start with `pose systems list`, then
    `pose train-all --profile demo`.

    Exit codes: 0 done, 1 something else failed, 2 configuration or arguments, 3 data, 4 training, 5 export, 6 registry.
    """


app.add_typer(data.app, name="data")
app.add_typer(systems.app, name="systems")
app.add_typer(config.app, name="config")
app.command()(train)
app.command("train-all")(train_all)
app.command()(evaluate)
app.command()(export)
app.command("import")(import_)
app.command()(predict)
app.add_typer(registry.app, name="registry")


def main() -> None:
    """The `pose` script."""
    app(prog_name="pose", args=sys.argv[1:])


if __name__ == "__main__":
    main()
