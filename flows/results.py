"""What a run came to, as the report, the terminal and Prefect's artifacts show it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import nan
from pathlib import Path
from typing import Any

from PIL import Image

from flows import steps
from flows.data import DatasetVersion
from pose import report
from pose.config import ROOT, Params
from pose.data.loader import decode
from pose.data.shards import Split, describe
from pose.digests import json_sha256, tree_sha256
from pose.errors import RegistryError
from pose.evaluation import Evaluation
from pose.export import ExportReport
from pose.people import People
from pose.progress import say
from pose.registry import Decision, RunLog, Version
from pose.report import Entry
from pose.systems import SYSTEMS


@dataclass(frozen=True)
class Results:
    """Versions, failures and decisions of one run."""

    params: Params
    dataset: DatasetVersion
    command: str
    finished: Mapping[str, tuple[Version, bool]]
    """By architecture: its version, and whether nothing had to be done for it."""
    failures: Mapping[str, BaseException]
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    """By registered model."""

    @cached_property
    def entries(self) -> list[Entry]:
        """One per architecture, failed ones too, read from the registered bundles."""
        split = Split.open(self.dataset.directory, self.params.evaluation.split)
        made = [self._entry(name, version, reused, split) for name, (version, reused) in self.finished.items()]
        return made + [Entry(name, SYSTEMS[name].card.title, failure=str(e)) for name, e in self.failures.items()]

    def _entry(self, name: str, version: Version, reused: bool, split: Split) -> Entry:
        bundle = steps.registry(self.params).bundle(version.uri)
        exported = ExportReport.load(bundle)
        facts = json.loads((bundle / "training.json").read_text())
        decision = self.decisions.get(version.name)
        champion = self.champion_of_dataset == version.uri
        return Entry(
            name=name,
            title=SYSTEMS[name].card.title,
            evaluation=Evaluation.load(bundle / "evaluation"),
            predictions=People.load(bundle / "evaluation" / "predictions.npz"),
            truth=split.truth(),
            crop=lambda row: (Image.fromarray(decode(split, row)), split.to_crop[row]),
            history=[json.loads(line) for line in (bundle / "history.jsonl").read_text().splitlines()],
            training_seconds=facts["seconds"],
            images_per_second=facts["images_per_second"],
            parameters=exported.parameters,
            model_bytes=exported.bytes["model.onnx"],
            latency_ms=exported.latency_ms,
            throughput=exported.throughput,
            version=f"{version.name}/{version.version}",
            promoted=decision.promoted if decision else None,
            reason=decision.reason if decision else "",
            champion_of=f"pose-{self.params.dataset}" if champion else None,
            reused=reused,
            lineage={key: version.tags[key] for key in sorted(version.tags) if key not in HIDDEN_TAGS},
            command=self._command(name),
        )

    def _command(self, name: str) -> str:
        """How to train one of them again; what waits for boxes of this run's detector needs the whole run."""
        if self.params.systems[name].awaits:
            return self.command
        return f"pose train {name}{self.command.removeprefix('pose train-all')}"

    @property
    def champion(self) -> str | None:
        """What a consumer loads: the dataset's champion by its alias, or None while there is none."""
        return f"models:/pose-{self.params.dataset}@champion" if self.champion_of_dataset else None

    @cached_property
    def champion_of_dataset(self) -> str | None:
        """URI of the system's version behind `pose-<dataset>@champion`."""
        try:
            return steps.registry(self.params).resolve(f"pose-{self.params.dataset}@champion").tags["origin"]
        except RegistryError:  # no champion yet, or none that can be asked for: the page then names none
            return None

    def write_report(self, run: RunLog) -> Path:
        """The page in runs/reports/ and among the run's artefacts; kept where nothing it shows has changed."""
        shown = {name: version.uri for name, (version, _) in self.finished.items()}
        fates = {model: (d.version, d.champion) for model, d in self.decisions.items()}
        page_code = tree_sha256(ROOT, ["pose/report/*"])
        key = json_sha256(
            [
                page_code,
                shown,
                fates,
                self.champion_of_dataset,
                {name: str(error) for name, error in self.failures.items()},
            ]
        )
        page = self.params.storage_path / "reports" / f"{self.params.dataset}-{key[:12]}" / "report.html"
        attached = page.with_name("attached")
        if attached.exists():
            say(f"report: nothing changed, skipped: {page}")
            return page
        report.build(
            self.entries,
            page,
            title=f"Pose systems on {self.params.dataset}",
            info=describe(self.dataset.directory),
            gallery=self.params.evaluation.gallery,
            command=self.command,
        )
        try:
            steps.registry(self.params).attach(run, page, "report")
            attached.touch()
        except RegistryError as error:
            say(f"the report is in {page} but not yet in MLflow: {error}")
        return page

    def rows(self) -> list[dict[str, Any]]:
        """The results table as Prefect shows one."""
        metric = self.params.promotion.metric
        return [
            {
                "architecture": entry.name,
                metric: f"{entry.evaluation.metrics.get(metric, nan):.4f}" if entry.evaluation else "failed",
                "latency ms": f"{entry.latency_ms:.2f}" if entry.latency_ms else "",
                "protocol": getattr(entry.evaluation and entry.evaluation.protocol_of(metric), "id", ""),
                "version": entry.version or "",
                "outcome": entry.failure or entry.reason,
            }
            for entry in self.entries
        ]

    def places(self, page: Path) -> dict[str, str]:
        """Where to look next."""
        store = steps.registry(self.params).store.uri
        return {
            "report": page.as_uri(),
            "champion": self.champion or "none yet, or MLflow is out of reach",
            "MLflow": store if store.startswith("http") else f"{store}  (look: mlflow ui --backend-store-uri {store})",
        }

    def markdown(self, page: Path) -> str:
        """The verdict in a few lines."""
        lines = [
            f"- **{decision.model}/{decision.version}**: {decision.reason}" for decision in self.decisions.values()
        ]
        lines += [f"- **{name} failed**: {error}" for name, error in self.failures.items()]
        places = [f"- {label}: {place}" for label, place in self.places(page).items()]
        return "\n".join([f"# train-all on {self.params.dataset}", *lines, "", *places])


HIDDEN_TAGS = frozenset({"metrics", "intervals", "params", "decision", "protocols"})
"""Long values that the report shows elsewhere."""
