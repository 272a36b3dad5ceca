"""`pose data`: from an archive to shards, and a look at both."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pose.commands.options import (
    Dataset,
    Json,
    Profile,
    Set,
    dataset_params,
    load_params,
    prepared_folder,
    raw_folder,
    unpacked_folder,
)
from pose.commands.output import print_json, results_console

app = typer.Typer(no_args_is_help=True, help="Fetch, check, prepare and look at a dataset.")


@app.command()
def fetch(dataset: Dataset) -> None:
    """Download a dataset's archives into data/raw/DATASET, or make them where it is synthetic or a collage.

    The folder or address in POSE_MIRROR is tried first; a partial download is resumed, size and hash are checked.
    Example: `POSE_MIRROR=file:///archives pose data fetch lspet`
    """
    _fetch(dataset)


def _fetch(dataset: str) -> None:
    from pose.data import sources

    params = dataset_params(dataset)
    base = None
    if params.collage is not None:
        other = params.collage.of
        base = sources.Base(dataset_params(other), raw_folder(other), prepared_folder(other))
    sources.fetch_dataset(dataset, params, raw_folder(dataset), base, unpacked_folder())


@app.command()
def prepare(dataset: Dataset) -> None:
    """Audit, split and crop a fetched dataset into data/prepared/DATASET.

    Stops on audit errors; running it again writes the same bytes. `dvc repro` calls this when something changed.
    Example: `pose data prepare demo`
    """
    from pose.data.prepare import prepare as prepare_dataset

    params = dataset_params(dataset)
    prepare_dataset(dataset, params, raw_folder(dataset), unpacked_folder(), prepared_folder(dataset))


@app.command()
def check(
    dataset: Dataset,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet of the worst records to this PNG.")] = None,
    json: Json = False,
) -> None:
    """Audit a dataset's images and annotations before any accelerator starts; exit code 3 when it has errors.

    Fetches it first where that has not happened. Example: `pose data check lspet --sheet worst.png`
    """
    from pose.data import check as auditing
    from pose.data import sources

    params = dataset_params(dataset)
    _fetch(dataset)
    source = sources.open_source(dataset, params, raw_folder(dataset), unpacked_folder())
    audit = auditing.audit(source, params.check)
    if json:
        print_json(audit.to_json())
    else:
        results_console().print(audit.summary())
    if sheet is not None:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        audit.contact_sheet(source, sheet)
        typer.echo(f"contact sheet: {sheet}", err=True)
    audit.raise_if_failed()


@app.command()
def preview(
    dataset: Dataset,
    system: Annotated[str, typer.Option(help="Whose input size and augmentation to show.")] = "baseline1",
    split: Annotated[
        Literal["train", "val", "test"], typer.Option(help="train is shown augmented, the others as they are.")
    ] = "train",
    out: Annotated[Path | None, typer.Option(help="The picture; default preview-DATASET.png.")] = None,
    profile: Profile = None,
    set_: Set = None,
) -> None:
    """Draw what a network sees: crops or, by its view, scenes after augmentation, with joints and boxes.

    Beneath them lie the targets of systems that have maps of some, or the crops that DeepPose's later stages see.
    Example: `pose data preview demo --profile demo --system alexnet --out seen.png`
    """
    import torch

    from pose.commands.systems import known_system
    from pose.data import preview as drawing
    from pose.data.loader import open_loader
    from pose.systems import SYSTEMS, create

    params = load_params(profile, set_)
    dataset_params(dataset)
    chosen = params.systems[known_system(params, system)]
    augment = chosen.chosen.augment if split == "train" else None
    loader = open_loader(SYSTEMS[system].view, prepared_folder(dataset), split, threads=1)
    with torch.device("meta"):
        seer = create(system, chosen, loader.split.skeleton)
    path = out or Path(f"preview-{dataset}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.sheet(loader, seer.prepare, augment, path, getattr(seer, "targets_preview", None), seer.preview)
    typer.echo(str(path))
