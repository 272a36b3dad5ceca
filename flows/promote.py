"""Flow promote: one registered version against the champion of its model, by hand or from another system."""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows import steps
from flows.data import bring_up_to_date
from pose import config_loading
from pose.progress import say
from pose.registry import Decision, whoami


@flow(name="promote", log_prints=True)
def promote(reference: str, profile: str | None = None, why: str = "asked by hand") -> Decision:
    """Moves the champion alias to a version if a paired bootstrap on the same test images proves it better.

    reference: models:/NAME/NUMBER or models:/NAME@ALIAS.
    """
    params = config_loading.load(profile)
    dataset = bring_up_to_date(params.dataset)
    registry = steps.registry(params)
    version = registry.resolve(reference)
    again = steps.Reevaluate(params, dataset, params.detections_path)
    decision = registry.promote(version.name, version.version, params.promotion, whoami(), why, again)
    verdict = "promoted" if decision.promoted else "kept back"
    say(f"{version.uri} {verdict}: {decision.reason}")
    create_markdown_artifact(f"**{version.uri}** {verdict}: {decision.reason}", key="promotion")
    return decision
