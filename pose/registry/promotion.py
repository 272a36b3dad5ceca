"""Promotion: the alias `champion` moves only on evidence, one promotion at a time, and can be moved back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pose.config import PromotionParams
from pose.errors import RegistryError
from pose.evaluation import LOWER_IS_BETTER, Evaluation
from pose.metrics import bootstrap, ranking
from pose.protocol import Protocol
from pose.registry import ledger
from pose.registry.locks import Lock, lock
from pose.registry.store import Store, translated
from pose.registry.versions import CHAMPION, PREVIOUS, Version, create, fetch, get, listed, versions

Reevaluate = Callable[[Path], Evaluation]
"""Evaluates the bundle in a directory on the challenger's test images."""


@dataclass(frozen=True)
class Decision:
    """What came of one promotion. difference, low, high: challenger minus champion, positive is better."""

    model: str
    version: int
    promoted: bool
    reason: str
    metric: str
    value: float | None
    """The challenger's metric; None where it was not measured by it."""
    champion: int | None
    """The champion after this decision."""
    previous: int | None
    """The champion before it."""
    difference: float | None = None
    low: float | None = None
    high: float | None = None


def promote(
    store: Store,
    model: str,
    version: int,
    params: PromotionParams,
    who: str,
    why: str,
    reevaluate: Reevaluate | None = None,
) -> Decision:
    """Makes `version` the champion if it is proved better on the same test images; says why either way.

    The first champion of a model must beat the mean pose. Raises RegistryError where a bundle is incomplete or
    changed, or somebody else's promotion does not end.
    """
    with _exclusive(store, model) as held:
        challenger = get(store, model, version)
        evaluation = Evaluation.load(fetch(store, challenger) / "evaluation")
        decision = _decide(store, challenger, evaluation, params, reevaluate)
        if decision.promoted:
            _move(store, held, ledger.Entry("promote", who, why, decision.previous, version, asdict(decision)))
        if decision.previous != version:  # what made it champion stays on record
            store.client.set_model_version_tag(model, str(version), "decision", json.dumps(asdict(decision)))
    return decision


def promote_dataset(
    store: Store,
    dataset: str,
    candidates: Sequence[Version],
    params: PromotionParams,
    who: str,
    why: str,
    reevaluate: Reevaluate | None = None,
) -> Decision:
    """Offers the best candidate to `pose-<dataset>`, as a version that points to the candidate's own bundle.

    Who competes: see comparable. Raises RegistryError where nobody does.
    """
    rivals = comparable(candidates, params.metric)
    if not rivals:
        raise RegistryError(f"no registered model is left to compete for pose-{dataset}; see why each system failed.")
    sign = _sign(params.metric)
    best = max(rivals, key=lambda version: sign * version.metrics[params.metric])
    model = f"pose-{dataset}"
    with translated(store.uri):
        known = versions(store, model, f"tags.bundle_sha256 = '{best.tags['bundle_sha256']}'")
        tags = {key: value for key, value in best.tags.items() if key != "decision"} | {"origin": best.uri}
        offered = known[-1] if known else create(store, model, best.source, best.run_id, tags)
    return promote(store, model, offered.version, params, who, why, reevaluate)


def comparable(candidates: Sequence[Version], metric: str) -> list[Version]:
    """The candidates that have the metric by protocols that are all rivals: the largest such group."""
    measured = [version for version in candidates if _measured(version.metrics, metric) is not None]
    groups: list[list[Version]] = []
    for first in measured:
        group = [first]
        for other in measured:
            ours = other.protocol_of(metric)
            if other is not first and all(_rivals(ours, member.protocol_of(metric)) for member in group):
                group.append(other)
        groups.append(group)
    largest = max(groups, key=len, default=[])
    return [version for version in measured if version in largest]


def left_out(candidates: Sequence[Version], metric: str) -> dict[str, str]:
    """Why each of the other candidates does not compete, by its URI."""
    competing = comparable(candidates, metric)
    reasons = {}
    for version in candidates:
        if version in competing:
            continue
        if _measured(version.metrics, metric) is None:
            reasons[version.uri] = f"it was not measured by {metric}"
            continue
        ours = version.protocol_of(metric)
        theirs = next(o.protocol_of(metric) for o in competing if not _rivals(ours, o.protocol_of(metric)))
        reasons[version.uri] = f"it was measured by another protocol than most ({_apart(ours, theirs)})"
    return reasons


def rollback(store: Store, model: str, who: str, why: str, to: int | None = None) -> ledger.Entry:
    """Gives the alias back to @previous, or to version `to`, whose bundle is verified first.

    Asked again without a promotion in between it changes nothing and returns the last entry. Raises RegistryError
    where there is nothing to go back to.
    """
    listed(store, model)
    with _exclusive(store, model) as held:
        champion, entries = _champion(store, model), ledger.read(store, model)
        target = to if to is not None else _aliased(store, model, PREVIOUS)
        if target is None:
            raise RegistryError(
                f"{model} has no earlier champion to go back to. `pose registry history {model}` shows all moves, "
                f"`pose registry show {model}` all versions; name one of them."
            )
        if target == champion and entries:
            return entries[-1]
        fetch(store, get(store, model, target))
        return _move(store, held, ledger.Entry("rollback", who, why, champion, target))


def history(store: Store, model: str) -> list[ledger.Entry]:
    """Every move of the champion, oldest first."""
    listed(store, model)
    with translated(store.uri):
        return ledger.read(store, model)


@contextmanager
def _exclusive(store: Store, model: str) -> Iterator[Lock]:
    """Holds the model's lock and first writes down a move of the alias that the ledger does not know."""
    with translated(store.uri), lock(store, model) as held:
        entries = ledger.read(store, model)
        champion = _champion(store, model)
        if entries and entries[-1].to_version != champion:
            why = "the alias had been moved by other means, its version was deleted, or a promotion was cut short"
            ledger.append(store, model, ledger.Entry("found", "pose", why, entries[-1].to_version, champion))
        yield held


def _decide(
    store: Store, challenger: Version, evaluation: Evaluation, params: PromotionParams, reevaluate: Reevaluate | None
) -> Decision:
    if "box_ap" in evaluation.metrics and not {params.metric, "oks_ap", "pck_image_12"} & set(evaluation.metrics):
        params = params.model_copy(update={"metric": "box_ap"})  # a detector finds boxes and nothing else
    value = _measured(evaluation.metrics, params.metric)
    champion = _champion(store, challenger.name)

    def decided(promoted: bool, reason: str, numbers: tuple[float, float, float] | None = None) -> Decision:
        now = challenger.version if promoted else champion
        difference, low, high = numbers or (None, None, None)
        return Decision(
            challenger.name,
            challenger.version,
            promoted,
            reason,
            params.metric,
            value,
            now,
            champion,
            difference,
            low,
            high,
        )

    if champion == challenger.version:
        return decided(False, "is the champion already")
    withdrawn = _withdrawn(store, challenger)
    if withdrawn is not None:
        again = f"`pose registry rollback {challenger.name} --to {challenger.version}` puts it back"
        return decided(False, f"was rolled back by {withdrawn.who}: {withdrawn.why}. {again}")
    if value is None:
        return decided(False, f"it was not measured by {params.metric}, which promotion.metric asks for")
    baseline = evaluation.metrics.get(f"mean_pose_{params.metric.removesuffix('_detected')}", 0.0)
    if _sign(params.metric) * (value - baseline) <= 0:
        return decided(False, f"{params.metric} {value:.4f} does not beat the mean pose's {baseline:.4f}")
    if champion is None:
        return decided(True, f"first champion: {params.metric} {value:.4f} against the mean pose's {baseline:.4f}")
    holder = get(store, challenger.name, champion)
    if holder.tags.get("dataset") != challenger.tags.get("dataset"):
        # On each other's images both would win in turn, night after night.
        return decided(
            False,
            f"champion {champion} was trained on {holder.tags.get('dataset')}, this on "
            f"{challenger.tags.get('dataset')}: not comparable. pose-<dataset> has a champion of its own",
        )
    bundle = fetch(store, holder)
    theirs = Evaluation.load(bundle / "evaluation")
    same_data = holder.tags.get("data_hash") == challenger.tags.get("data_hash")
    if not (same_data and same_images(evaluation, theirs, params.metric)):
        if reevaluate is None:
            why = f"champion {champion} was evaluated on other test images; evaluate it anew to compare"
            return decided(False, why)
        theirs = reevaluate(bundle)
        if _measured(theirs.metrics, params.metric) is None:
            lacking = "; evaluation.detections can name its boxes" if params.metric.endswith("_detected") else ""
            why = f"champion {champion} was evaluated anew and not measured by {params.metric}{lacking}"
            return decided(False, why)
        if not same_images(evaluation, theirs, params.metric):
            ours, others = evaluation.protocol_of(params.metric), theirs.protocol_of(params.metric)
            if not _rivals(ours, others):
                # A property of the systems, not of the night: what sees true boxes has it easier than what does not.
                apart = _apart(ours, others)
                return decided(False, f"{params.metric} is not comparable with champion {champion}'s: {apart}")
            raise RegistryError(
                f"champion {challenger.name}/{champion} was evaluated anew on {theirs.dataset} {theirs.split} "
                f"({len(theirs.image_ids)} images), challenger {challenger.version} on {evaluation.dataset} "
                f"{evaluation.split} ({len(evaluation.image_ids)} images): they must be the same."
            )
    numbers = compare(evaluation, theirs, params)
    return decided(*_verdict(numbers, champion, params), numbers)


def _withdrawn(store: Store, challenger: Version) -> ledger.Entry | None:
    """The rollback that took this training's alias away, unless somebody has since given it back.

    The same weights would win the same comparison again the night after a person decided against them.
    """
    for entry in reversed(ledger.read(store, challenger.name)):
        if entry.to_version is not None and _same_training(store, challenger, entry.to_version):
            return None
        taken = entry.from_version if entry.action == "rollback" else None
        if taken is not None and _same_training(store, challenger, taken):
            return entry
    return None


def _same_training(store: Store, challenger: Version, number: int) -> bool:
    if number == challenger.version:
        return True
    others = {version.version: version.fingerprint for version in versions(store, challenger.name)}
    return challenger.fingerprint != "" and others.get(number) == challenger.fingerprint


def compare(challenger: Evaluation, champion: Evaluation, params: PromotionParams) -> tuple[float, float, float]:
    """(difference, low, high) of a paired bootstrap over images, signed so that positive means better."""
    if params.metric in challenger.rankings:
        rankings = challenger.rankings[params.metric], champion.rankings[params.metric]
        return ranking.paired(*rankings, params.resamples, params.confidence)
    ours, theirs = challenger.per_image[params.metric], champion.per_image[params.metric]
    difference, low, high = bootstrap.paired(*ours, *theirs, params.resamples, params.confidence)
    return (difference, low, high) if _sign(params.metric) > 0 else (-difference, -high, -low)


def same_images(a: Evaluation, b: Evaluation, metric: str) -> bool:
    """Whether two evaluations speak of the same images with the same truth, in the same order, by the same protocol."""
    if not _rivals(a.protocol_of(metric), b.protocol_of(metric)):
        return False
    if (a.dataset, a.split) != (b.dataset, b.split):
        return False
    if metric in a.rankings and metric in b.rankings:
        return np.array_equal(a.rankings[metric].wanted, b.rankings[metric].wanted)
    return (
        metric in a.per_image
        and metric in b.per_image
        and np.array_equal(a.image_ids, b.image_ids)
        and np.array_equal(a.per_image[metric][1], b.per_image[metric][1])
    )


def _rivals(ours: Protocol | None, theirs: Protocol | None) -> bool:
    """Whether two figures compete; those of before there were protocols do among themselves."""
    return ours == theirs or (ours is not None and theirs is not None and ours.rivals(theirs))


def _apart(ours: Protocol | None, theirs: Protocol | None) -> str:
    """How two protocols differ in words."""
    if ours is None or theirs is None:
        return f"no protocol {'here' if ours is None else 'there'}"
    return "; ".join(f"{name} {mine} here, {other} there" for name, (mine, other) in ours.differences(theirs).items())


def _verdict(numbers: tuple[float, float, float], champion: int, params: PromotionParams) -> tuple[bool, str]:
    difference, low, high = numbers
    seen = f"{params.metric} {difference:+.4f} [{low:+.4f}, {high:+.4f}] against champion {champion}"
    if low > params.margin:
        return True, f"{seen}: better beyond the margin {params.margin:g}"
    return False, f"{seen}: the lower bound does not exceed the margin {params.margin:g}"


def _move(store: Store, held: Lock, entry: ledger.Entry) -> ledger.Entry:
    """Writes the ledger, then the aliases: a crash between them leaves an entry that the next move corrects."""
    model = held.model
    held.still_held()
    written = ledger.append(store, model, entry)
    if entry.action == "promote" and entry.from_version is not None:
        store.client.set_registered_model_alias(model, PREVIOUS, str(entry.from_version))
    held.still_held()
    store.client.set_registered_model_alias(model, CHAMPION, str(entry.to_version))
    return written


def _champion(store: Store, model: str) -> int | None:
    return _aliased(store, model, CHAMPION)


def _aliased(store: Store, model: str, alias: str) -> int | None:
    aliases = store.client.get_registered_model(model).aliases
    return int(aliases[alias]) if alias in aliases else None


def _measured(metrics: Mapping[str, float], metric: str) -> float | None:
    """A figure that is there and is a number."""
    value = metrics.get(metric)
    return value if value is not None and np.isfinite(value) else None


def _sign(metric: str) -> int:
    return -1 if metric in LOWER_IS_BETTER else 1
