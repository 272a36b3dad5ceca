"""`pose config`: what params.yaml, a profile and `--set` come to."""

from __future__ import annotations

from functools import reduce
from typing import Annotated, Any

import typer

from pose.commands.options import Json, Profile, Set, checkout, load_params
from pose.commands.output import print_json

app = typer.Typer(no_args_is_help=True, help="Show or check the resolved configuration.")


@app.command()
def show(
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="Only this part, as in systems.vgg19.")] = None,
    profile: Profile = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Print the configuration that a run would use, as YAML.

    Example: `pose config show training.ray --profile cluster --set training.ray.workers=8`
    """
    import yaml

    resolved = load_params(profile, set_).model_dump(mode="json")
    part = reduce(_descend, key.split("."), (resolved, ""))[0] if key else resolved
    if json:
        print_json(part)
    else:
        typer.echo(yaml.safe_dump(part, sort_keys=False, default_flow_style=None), nl=False)


@app.command()
def check(profile: Profile = None, set_: Set = None, json: Json = False) -> None:
    """Check params.yaml alone and with every profile, or with the one profile given; exit code 2 on an error.

    Example: `pose config check --set training.precision=bf16`
    """
    from pose.config_loading import profiles
    from pose.errors import ConfigError

    names = [profile] if profile else [None, *profiles(checkout())]
    errors: dict[str, str | None] = {}
    for name in names:
        try:
            load_params(name, set_)
            errors[name or "params.yaml"] = None
        except ConfigError as error:
            errors[name or "params.yaml"] = str(error)
    if json:
        print_json(errors)
    else:
        for where, found in errors.items():
            typer.echo(f"{where}: {found or 'good'}", err=found is not None)
    if any(errors.values()):
        raise typer.Exit(ConfigError.exit_code)


def _descend(place: tuple[Any, str], name: str) -> tuple[Any, str]:
    """One step down the resolved configuration; the path so far is for the error."""
    from pose.errors import ConfigError

    value, path = place
    if not isinstance(value, dict) or name not in value:
        known = ", ".join(value) if isinstance(value, dict) else "no keys, it is a single value"
        raise ConfigError(f"no key {name!r} under {path or 'the top of params.yaml'}; it has {known}")
    return value[name], f"{path}.{name}" if path else name
