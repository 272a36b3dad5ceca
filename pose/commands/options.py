"""Options that several commands share, and where their files lie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pose.config import DatasetParams, Params

Profile = Annotated[
    str | None,
    typer.Option("--profile", "-p", metavar="NAME", help="Overlay infra/profiles/NAME.yaml (demo, lspet-cpu, …)."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Change one value of params.yaml; may be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print pure JSON on standard output, for scripts.")]
Dataset = Annotated[str, typer.Argument(metavar="DATASET", help="A name under `data` in params.yaml.")]


def checkout() -> Path:
    """The folder that params.yaml, data/ and infra/ lie in."""
    from pose.config import ROOT

    return ROOT


def load_params(profile: str | None = None, overrides: list[str] | None = None) -> Params:
    """params.yaml with its overlays. Raises ConfigError."""
    from pose import config_loading

    return config_loading.load(profile, overrides or [], checkout())


def dataset_params(name: str) -> DatasetParams:
    """One dataset's block of params.yaml, without profile: data is DVC's business. Raises ConfigError."""
    from pose import config_loading

    return config_loading.load_dataset(name, checkout())


def raw_folder(name: str) -> Path:
    """Where a dataset's archive lies."""
    return checkout() / "data" / "raw" / name


def unpacked_folder() -> Path:
    """Where archives are unpacked: a cache that may be deleted."""
    return checkout() / "data" / "unpacked"


def prepared_folder(name: str) -> Path:
    """Where a dataset's splits and shards lie."""
    return checkout() / "data" / "prepared" / name


def model_folder(model: str, profile: str | None = None, overrides: list[str] | None = None) -> Path:
    """A model as a local folder: one named outright, or the verified bundle behind models:/... (RegistryError)."""
    if not model.startswith("models:/"):
        return Path(model)
    from pose.registry import Registry

    return Registry(load_params(profile, overrides).storage_path).bundle(model)


def split_overrides(overrides: list[str] | None) -> tuple[list[str], list[str]]:
    """What `--set` says of everything else; what it says of systems, for which a trained model has its own numbers."""
    of_systems = [text for text in overrides or [] if text.partition("=")[0].split(".")[0] == "systems"]
    return [text for text in overrides or [] if text not in of_systems], of_systems


def require_no_systems(overrides: list[str]) -> None:
    """Raises ConfigError for what `--set` says of systems where models are trained already.

    A profile may have systems: it is chosen for its other blocks, too.
    """
    from pose.errors import ConfigError

    for text in split_overrides(overrides)[1]:
        raise ConfigError(
            f"--set {text} would change nothing: a model keeps the numbers that it was trained, imported or exported "
            f"with; leave it away, or train or import again with it. `pose export --set` gives a model other numbers "
            f"of its use, as those of its decoding"
        )
