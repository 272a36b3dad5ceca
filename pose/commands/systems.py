"""`pose systems`: the architectures, their sources and their sizes."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pose.commands.options import Json, Profile, Set, load_params
from pose.commands.output import print_json, print_table

if TYPE_CHECKING:
    from pose.config import Params
    from pose.skeleton import Skeleton

app = typer.Typer(no_args_is_help=True, help="The architectures: sources, sizes, published figures.")
Joints = Annotated[int, typer.Option(min=1, help="Count parameters and MACs for this number of joints.")]


@app.command("list")
def list_(joints: Joints = 14, profile: Profile = None, set_: Set = None, json: Json = False) -> None:
    """Every architecture with its view, input size, parameters and multiply-accumulates per image.

    Example: `pose systems list --profile lspet-cpu --joints 17`
    """
    params = load_params(profile, set_)
    cards = [describe(params, name, joints) for name in params.systems]
    if json:
        print_json(cards)
        return
    print_table(
        f"systems, {joints} joints",
        ("name", "title", "view", "input", "recipe", "parameters", "MACs"),
        [
            (c["name"], c["title"], c["view"], side_by_side(c["input_size"]), c["recipe"], f"{c['parameters']:,}",
             f"{c['macs'] / 1e6:,.0f} M")
            for c in cards
        ],
        right=("input", "parameters", "MACs"),
    )  # fmt: skip


@app.command()
def show(
    system: Annotated[str, typer.Argument(metavar="SYSTEM", help="A name under `systems` in params.yaml.")],
    joints: Joints = 14,
    profile: Profile = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """All about one architecture: its paper, published figures, licence and resolved parameters.

    Example: `pose systems show vgg19 --profile demo`
    """
    import yaml

    params = load_params(profile, set_)
    card = describe(params, known_system(params, system), joints)
    if json:
        print_json(card)
        return
    typer.echo(f"{card['name']}: {card['title']}\n")
    for key in ("source", "published", "licence"):
        typer.echo(f"{key}: {card[key]}")
    typer.echo(
        f"view: {card['view']}, input {side_by_side(card['input_size'])} px\n"
        f"parameters: {card['parameters']:,} and {card['macs']:,} multiply-accumulates per image, {joints} joints\n"
    )
    typer.echo(yaml.safe_dump({"params": card["params"]}, sort_keys=False, default_flow_style=None))


def known_system(params: Params, name: str) -> str:
    """The same name. Raises ConfigError, naming the nearest known one, where params.yaml lacks it."""
    import difflib

    from pose.errors import ConfigError

    if name not in params.systems:
        near = difflib.get_close_matches(name, params.systems, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"unknown architecture {name!r}; params.yaml has {', '.join(params.systems)}{hint}")
    return name


def describe(params: Params, name: str, joints: int) -> dict[str, Any]:
    """What is known of one architecture, with its sizes for that number of joints."""
    import torch

    from pose.systems import create
    from pose.systems.base import multiply_accumulates, parameter_count

    block = params.systems[name]
    # Sizes need no memory and no arithmetic: the meta device has neither.
    with torch.device("meta"):
        system = create(name, block, _counted(joints))
        parameters, macs = parameter_count(system.network), multiply_accumulates(system)
    return {
        "name": name,
        "title": system.card.title,
        "source": system.card.source,
        "published": system.card.published,
        "licence": system.card.licence,
        "view": system.view,
        "input_size": block.input_size,
        "recipe": block.recipe,
        "joints": joints,
        "parameters": parameters,
        "macs": macs,
        "params": block.model_dump(mode="json"),
    }


def side_by_side(size: tuple[int, int]) -> str:
    """Width x height."""
    return f"{size[0]} x {size[1]}"


def _counted(joints: int) -> Skeleton:
    """The skeleton of a dataset with that many joints; where there is none, a chain of them."""
    from pose.skeleton import COCO17, LSP14, Skeleton

    for known in (LSP14, COCO17):
        if known.size == joints:
            return known
    names = tuple(f"joint_{k}" for k in range(joints))
    return Skeleton(f"{joints}-joints", names, tuple(pairwise(names)), (), (), (names[0], names[-1]), None, None)
