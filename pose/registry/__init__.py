"""Runs and models in MLflow. Nothing outside this package knows MLflow; the flow and the commands use Registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pose.config import PromotionParams
from pose.registry import comparison, promotion, runs, versions
from pose.registry.comparison import Comparison
from pose.registry.ledger import Entry, whoami
from pose.registry.promotion import Decision, Reevaluate, comparable, left_out
from pose.registry.runs import RunLog
from pose.registry.store import Store, translated
from pose.registry.versions import ModelSummary, Version

__all__ = [
    "Comparison", "Decision", "Entry", "ModelSummary", "Registry", "RunLog", "Store", "Version", "comparable",
    "left_out", "whoami",
]  # fmt: skip


class Registry:
    """The door to one store: MLFLOW_TRACKING_URI, or SQLite and files below `storage`."""

    def __init__(self, storage: Path, uri: str | None = None) -> None:
        self.store = Store(storage, uri)

    def start_run(self, name: str, fingerprint: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> RunLog:
        """The run of this fingerprint, new or gone on with. Works without MLflow; see RunLog."""
        return runs.start_run(self.store, name, fingerprint, tags, params)

    def sync(self) -> list[str]:
        """Logs what MLflow missed while it was away and closes orphaned runs; ids of runs that grew."""
        return runs.sync(self.store)

    def attach(self, run: RunLog, path: Path, place: str) -> None:
        """Puts a file among a run's artefacts. Raises RegistryError where MLflow is unreachable."""
        run_id = run.synced()
        with translated(self.store.uri):
            self.store.client.log_artifact(run_id, str(path), place)

    def finished(self, name: str, identity: str, tag: str = "fingerprint") -> Version | None:
        """The version of model `name` that has this identity in a tag, if its bundle is readable."""
        return versions.finished(self.store, name, identity, tag)

    def register(
        self, bundle: Path, name: str, run: RunLog | str, tags: Mapping[str, str], metrics: Mapping[str, float]
    ) -> Version:
        """Makes a complete bundle a version of model `name`. `tags` is its lineage, the fingerprint among it."""
        run_id = run if isinstance(run, str) else run.synced()
        return versions.register(self.store, bundle, name, run_id, tags, metrics)

    def promote(
        self,
        model: str,
        version: int,
        params: PromotionParams,
        who: str,
        why: str,
        reevaluate: Reevaluate | None = None,
    ) -> Decision:
        """Challenger against champion on the same test images; see promotion.promote."""
        return promotion.promote(self.store, model, version, params, who, why, reevaluate)

    def promote_dataset(
        self,
        dataset: str,
        candidates: Sequence[Version],
        params: PromotionParams,
        who: str,
        why: str,
        reevaluate: Reevaluate | None = None,
    ) -> Decision:
        """The best of all systems against the champion of `pose-<dataset>`."""
        return promotion.promote_dataset(self.store, dataset, candidates, params, who, why, reevaluate)

    def rollback(self, model: str, who: str, why: str, to: int | None = None) -> Entry:
        """Back to the previous champion, or to version `to`."""
        return promotion.rollback(self.store, model, who, why, to)

    def history(self, model: str) -> list[Entry]:
        """Every move of a model's champion, oldest first."""
        return promotion.history(self.store, model)

    def show(self, model: str) -> list[Version]:
        """All versions of one model, oldest first."""
        return versions.listed(self.store, model)

    def compare(self, references: Sequence[str]) -> Comparison:
        """Figures of several versions side by side. Raises RegistryError where their protocols differ."""
        return comparison.compare(self.store, references)

    def resolve(self, reference: str) -> Version:
        """The version behind models:/NAME@ALIAS, models:/NAME/NUMBER or NAME."""
        return versions.resolve(self.store, reference)

    def bundle(self, reference: str) -> Path:
        """The verified bundle behind a reference, as a local directory."""
        return versions.fetch(self.store, versions.resolve(self.store, reference))

    def trace(self, reference: str) -> dict[str, Any]:
        """Everything a model version came from."""
        return versions.trace(self.store, reference)

    def list(self) -> list[ModelSummary]:
        """All registered models."""
        return versions.summaries(self.store)
