"""Model versions: registered once, found again by fingerprint, traced back to everything they came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from pose.bundle import read_manifest, seal, verify
from pose.errors import RegistryError
from pose.protocol import Protocol
from pose.registry.locks import PREFIX as LOCK_PREFIX
from pose.registry.packaging import write_mlmodel
from pose.registry.store import Store, translated

CHAMPION, PREVIOUS = "champion", "previous"


@dataclass(frozen=True)
class Version:
    """One registered model version."""

    name: str
    version: int
    run_id: str
    source: str
    """Artifact URI of the bundle."""
    tags: dict[str, str]
    aliases: tuple[str, ...]

    @property
    def uri(self) -> str:
        """What a consumer loads."""
        return f"models:/{self.name}/{self.version}"

    @property
    def metrics(self) -> dict[str, float]:
        """The evaluation's metrics as registered."""
        return json.loads(self.tags.get("metrics", "{}"))

    def protocol_of(self, metric: str) -> Protocol | None:
        """How a figure came about; None for versions registered before there were protocols."""
        known = json.loads(self.tags.get("protocols", "{}"))
        parts = known.get("_detected" if metric.endswith("_detected") else "")
        return None if parts is None else Protocol.of({key: value for key, value in parts.items() if key != "id"})

    @property
    def fingerprint(self) -> str:
        """Identity of the training it came from."""
        return self.tags.get("fingerprint", "")


@dataclass(frozen=True)
class ModelSummary:
    """One registered model for `pose registry list`."""

    name: str
    versions: int
    latest: int | None
    champion: int | None
    previous: int | None


def register(
    store: Store, bundle: Path, name: str, run_id: str, tags: Mapping[str, str], metrics: Mapping[str, float]
) -> Version:
    """Seals the bundle, uploads it and makes it a version of `name`; a bundle already registered is returned as it is.

    Raises RegistryError for an incomplete bundle or an unreachable MLflow.
    """
    with translated(store.uri):
        if not (bundle / "MLmodel").exists():
            write_mlmodel(bundle)
        digest = seal(bundle)
        for known in versions(store, name, f"tags.bundle_sha256 = '{digest}'"):
            if readable(store, known):
                return known
        place = f"bundle-{digest[:12]}"
        store.client.log_artifacts(run_id, str(bundle), place)
        _log_metrics(store, run_id, metrics)
        source = f"{store.client.get_run(run_id).info.artifact_uri}/{place}"
        return create(
            store, name, source, run_id, {**tags, "bundle_sha256": digest, "metrics": json.dumps(dict(metrics))}
        )


def create(store: Store, name: str, source: str, run_id: str, tags: Mapping[str, str]) -> Version:
    """A version of `name` that points to a bundle already uploaded. The model is made when it is the first."""
    from mlflow.exceptions import MlflowException

    try:
        store.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = store.client.create_model_version(
        name, source=source, run_id=run_id, tags={k: str(v) for k, v in tags.items()}
    )
    return get(store, name, int(made.version))


def finished(store: Store, name: str, identity: str, tag: str = "fingerprint") -> Version | None:
    """The newest version with this identity in a tag whose bundle is all there, or None."""
    with translated(store.uri):
        found = versions(store, name, f"tags.{tag} = '{identity}'")
        return next((version for version in reversed(found) if readable(store, version)), None)


def versions(store: Store, name: str, where: str | None = None) -> list[Version]:
    """Versions of one model, oldest first, narrowed by an MLflow filter."""
    query = f"name = '{name}'" + (f" and {where}" if where else "")
    found = store.client.search_model_versions(query, max_results=1000)
    aliases = _aliases(store, name) if found else {}
    return sorted((_version(item, aliases) for item in found), key=lambda version: version.version)


def get(store: Store, name: str, number: int) -> Version:
    """One version. Raises RegistryError when there is none."""
    from mlflow.exceptions import MlflowException

    try:
        found = store.client.get_model_version(name, str(number))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise RegistryError(
            f"{name} has no version {number} in MLflow at {store.uri}. `pose registry list` shows what there is."
        ) from None
    return _version(found, _aliases(store, name))


def resolve(store: Store, reference: str) -> Version:
    """The version behind NAME@ALIAS, NAME/VERSION or NAME (its champion), with or without `models:/`."""
    plain = reference.removeprefix("models:/")
    with translated(store.uri):
        if "/" in plain:
            name, _, number = plain.partition("/")
            if not number.isdigit():
                raise RegistryError(
                    f"{reference!r} is no model version: expected models:/NAME/NUMBER or models:/NAME@ALIAS."
                )
            return get(store, name, int(number))
        name, _, alias = plain.partition("@")
        target = _aliases(store, name).get(alias or CHAMPION)
        if target is None:
            raise RegistryError(
                f"no model {name} with the alias {alias or CHAMPION} in MLflow at {store.uri}. "
                "`pose registry list` shows what there is."
            )
        return get(store, name, target)


def fetch(store: Store, version: Version) -> Path:
    """The bundle as a local directory, every file checked against the hash it was registered with."""
    local = _local(version.source)
    if local is None:
        local = store.storage / "downloaded" / version.tags["bundle_sha256"]
        if not local.exists():
            _download(store, version, local)
    if not local.is_dir():
        raise RegistryError(
            f"{version.uri} points to {local}, which does not exist. Register the model again or roll back."
        )
    verify(local, version.tags.get("bundle_sha256", ""))
    return local


def readable(store: Store, version: Version) -> bool:
    """Whether all files of the bundle lie there with the size they were registered with. Hashes are fetch's work."""
    local = _local(version.source)
    if local is None:
        place = version.source.rstrip("/").rpartition("/")[2]
        return any(item.path == f"{place}/manifest.json" for item in store.client.list_artifacts(version.run_id, place))
    if not (local / "manifest.json").is_file():
        return False
    files = read_manifest(local)
    return all(
        (local / name).is_file() and (local / name).stat().st_size == item["bytes"] for name, item in files.items()
    )


def summaries(store: Store) -> list[ModelSummary]:
    """Every registered model of ours, locks left out."""
    with translated(store.uri):
        models = store.client.search_registered_models(max_results=1000)
        names = sorted(model.name for model in models if not model.name.startswith(LOCK_PREFIX))
        return [_summary(store, name) for name in names]


def listed(store: Store, name: str) -> list[Version]:
    """All versions of one model. Raises RegistryError where there is no such model."""
    with translated(store.uri):
        found = versions(store, name)
        if not found:
            names = ", ".join(summary.name for summary in summaries(store)) or "none"
            raise RegistryError(f"no model {name} in MLflow at {store.uri}; there are: {names}.")
        return found


def trace(store: Store, reference: str) -> dict[str, Any]:
    """Where a model version comes from: its lineage tags, its run with the resolved parameters, its files' hashes."""
    version = resolve(store, reference)
    with translated(store.uri):
        run = store.client.get_run(version.run_id)
        lineage = {key: value for key, value in version.tags.items() if key != "metrics"}
        return {
            "model": version.uri,
            "aliases": list(version.aliases),
            "lineage": lineage,
            "metrics": version.metrics,
            "run": {
                "id": version.run_id,
                "name": run.info.run_name,
                "status": run.info.status,
                "tags": {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")},
                "params": run.data.params,
            },
            "bundle": {"source": version.source, "files": read_manifest(fetch(store, version))},
        }


def _summary(store: Store, name: str) -> ModelSummary:
    aliases = _aliases(store, name)
    numbers = [version.version for version in versions(store, name)]
    return ModelSummary(name, len(numbers), max(numbers, default=None), aliases.get(CHAMPION), aliases.get(PREVIOUS))


def _aliases(store: Store, name: str) -> dict[str, int]:
    from mlflow.exceptions import MlflowException

    try:
        return {alias: int(number) for alias, number in store.client.get_registered_model(name).aliases.items()}
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise


def _version(item: Any, aliases: Mapping[str, int]) -> Version:
    number = int(item.version)
    names = tuple(sorted(alias for alias, target in aliases.items() if target == number))
    return Version(item.name, number, item.run_id, item.source, dict(item.tags), names)


def _log_metrics(store: Store, run_id: str, metrics: Mapping[str, float]) -> None:
    import time

    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    points = [Metric(f"evaluation/{key}", float(value), now, 0) for key, value in metrics.items() if value == value]
    store.client.log_batch(run_id, metrics=points)


def _local(source: str) -> Path | None:
    parts = urlparse(source)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None


def _download(store: Store, version: Version, target: Path) -> None:
    import shutil
    import tempfile

    from mlflow.artifacts import download_artifacts

    target.parent.mkdir(parents=True, exist_ok=True)
    with translated(store.uri), tempfile.TemporaryDirectory(dir=target.parent) as directory:
        got = download_artifacts(artifact_uri=version.source, dst_path=directory, tracking_uri=store.uri)
        shutil.move(got, target)
