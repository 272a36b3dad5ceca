"""Promotion moves the champion on evidence only, one at a time, and back again."""

from __future__ import annotations

import json
import multiprocessing
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pose.config import PromotionParams
from pose.errors import RegistryError
from pose.evaluation import Evaluation
from pose.metrics.ranking import Ranking
from pose.protocol import Protocol
from pose.registry import Registry
from pose.registry.locks import lock

PARAMS = PromotionParams(metric="pck_image_12", margin=0.0, resamples=200, confidence=0.95)
RANDOM = np.random.default_rng(3)
WORSE = RANDOM.integers(3, 6, 60)
BETTER = WORSE + 3
EQUAL = RANDOM.permutation(WORSE)


def promote(models, version, **changes):
    params = PARAMS.model_copy(update=changes)
    return models.registry.promote(models.name, version.version, params, "the test", "because")


def test_the_first_champion_must_beat_the_mean_pose(factory: Callable) -> None:
    models = factory()
    poor = promote(models, models.register(WORSE, mean_pose=0.9))
    assert not poor.promoted
    assert "does not beat the mean pose's 0.9" in poor.reason
    good = promote(models, models.register(WORSE, mean_pose=0.1))
    assert good.promoted
    assert models.registry.resolve(f"{models.name}@champion").version == 2


def test_a_better_challenger_takes_over_and_the_old_one_is_kept(factory: Callable) -> None:
    models = factory()
    promote(models, models.register(WORSE))
    decision = promote(models, models.register(BETTER))
    assert decision.promoted
    assert decision.low == pytest.approx(0.3)  # every image gained exactly three joints of ten
    assert models.registry.resolve(f"{models.name}@champion").version == 2
    assert models.registry.resolve(f"{models.name}@previous").version == 1
    first, second = models.registry.history(models.name)
    assert (first.from_version, first.to_version) == (None, 1)
    assert (second.from_version, second.to_version, second.who, second.why) == (1, 2, "the test", "because")
    assert second.numbers["difference"] == pytest.approx(0.3)
    assert second.when.startswith("20")


def test_an_equal_challenger_is_held_back(factory: Callable) -> None:
    models = factory()
    promote(models, models.register(WORSE))
    decision = promote(models, models.register(EQUAL))
    assert not decision.promoted
    assert decision.low < 0 < decision.high
    assert models.registry.resolve(f"{models.name}@champion").version == 1
    assert len(models.registry.history(models.name)) == 1


def test_what_a_person_rolled_back_is_not_promoted_again_by_the_next_night(factory: Callable) -> None:
    models = factory()
    promote(models, models.register(WORSE))
    better = models.register(BETTER)
    assert promote(models, better).promoted
    models.registry.rollback(models.name, "a person", "fails on night pictures")
    again = promote(models, better)
    assert not again.promoted
    assert "rolled back by a person: fails on night pictures" in again.reason
    assert models.registry.resolve(f"{models.name}@champion").version == 1
    anew = models.register(BETTER, lineage={"fingerprint": better.fingerprint})
    assert not promote(models, anew).promoted, "the same weights, registered once more"
    models.registry.rollback(models.name, "a person", "it was the camera", to=better.version)
    assert models.registry.resolve(f"{models.name}@champion").version == better.version
    assert "champion already" in promote(models, better).reason


def test_a_champion_of_another_dataset_is_not_compared_with(factory: Callable) -> None:
    models = factory()
    promote(models, models.register(WORSE))
    decision = promote(models, models.register(BETTER, lineage={"dataset": "photographed"}))
    assert not decision.promoted
    assert "not comparable" in decision.reason


def test_a_champion_measured_on_other_data_is_measured_anew(factory: Callable) -> None:
    models = factory()
    promote(models, models.register(WORSE))
    challenger = models.register(BETTER, lineage={"data_hash": "changed"})
    assert "other test images" in promote(models, challenger).reason
    asked: list[Path] = []

    def reevaluate(bundle: Path) -> Evaluation:
        asked.append(bundle)
        return Evaluation.load(bundle / "evaluation")

    decision = models.registry.promote(models.name, challenger.version, PARAMS, "the test", "because", reevaluate)
    assert decision.promoted
    assert len(asked) == 1


def test_the_history_of_a_model_that_is_not_there_says_so(factory: Callable) -> None:
    models = factory()
    models.register(WORSE)
    for ask in (models.registry.history, lambda name: models.registry.rollback(name, "a person", "because")):
        with pytest.raises(RegistryError, match="no model pose-nobody"):
            ask("pose-nobody")


def test_the_margin_counts(factory: Callable) -> None:
    models = factory()
    promote(models, models.register(WORSE))
    challenger = models.register(BETTER)
    assert not promote(models, challenger, margin=0.31).promoted
    assert promote(models, challenger, margin=0.29).promoted


def test_lower_is_better_for_errors(factory: Callable) -> None:
    models = factory()
    assert promote(models, models.register(WORSE), metric="mse_unit").promoted
    decision = promote(models, models.register(BETTER), metric="mse_unit")
    assert decision.promoted
    assert decision.difference == pytest.approx(0.3)
    assert decision.low <= decision.difference <= decision.high


def test_other_test_images_need_a_new_evaluation(factory: Callable) -> None:
    models = factory()
    promote(models, models.register(WORSE))
    elsewhere = np.arange(60) + 1000
    challenger = models.register(BETTER, image_ids=elsewhere)
    held = promote(models, challenger)
    assert not held.promoted
    assert "other test images" in held.reason

    def reevaluate(bundle: Path) -> Evaluation:
        return replace(Evaluation.load(bundle / "evaluation"), image_ids=elsewhere)

    decision = models.registry.promote(models.name, challenger.version, PARAMS, "t", "w", reevaluate)
    assert decision.promoted


def test_who_was_not_measured_by_the_metric_is_kept_back_and_told_so(factory: Callable) -> None:
    models = factory()
    decision = promote(models, models.register(WORSE), metric="oks_ap_detected")
    assert (decision.promoted, decision.value, decision.champion) == (False, None, None)
    assert "it was not measured by oks_ap_detected" in decision.reason
    tag = models.registry.resolve(f"{models.name}/1").tags["decision"]
    assert json.loads(tag, parse_constant=pytest.fail)["metric"] == "oks_ap_detected"


def people(found: np.ndarray, boxes: str, metrics: tuple[str, ...] = ("oks_ap", "oks_ap_detected")) -> Evaluation:
    """One person in each image, found or not; every metric says the same."""
    image = np.arange(len(found))
    ranking = Ranking(image, np.tile(found[:, None], 10), np.zeros((len(found), 10), bool), np.ones(len(found), int))
    value = float(ranking.precision(ranking.once)[0])
    protocol = Protocol("drawn", "da7a", "test", "none", False, None, "none")
    detected = replace(protocol, boxes=boxes, nms="none" if boxes == "none" else "oks 0.9")
    return Evaluation(
        split="test", dataset="drawn", people=len(found), image_ids=image, confidence=0.95, resamples=100, joints=(),
        limbs=(), metrics=dict.fromkeys(metrics, value), intervals=dict.fromkeys(metrics, (value, value)),
        baselines={}, per_joint={}, per_joint_intervals={}, per_limb={}, curves={}, per_image={}, not_applicable=(),
        rankings=dict.fromkeys(metrics, ranking), protocols={"": protocol, "_detected": detected},
    )  # fmt: skip


FEW, MANY = np.arange(60) % 3 == 0, np.arange(60) % 3 < 2


def test_only_a_detector_is_judged_by_its_boxes(factory: Callable) -> None:
    detector, scene = factory(), factory()
    boxes = promote(detector, detector.offer(people(MANY, "none", ("box_ap",))), metric="oks_ap_detected")
    assert (boxes.promoted, boxes.metric) == (True, "box_ap")
    poses = promote(scene, scene.offer(people(MANY, "none", ("box_ap", "oks_ap"))), metric="oks_ap_detected")
    assert (poses.promoted, poses.metric) == (False, "oks_ap_detected")


def test_a_champion_of_other_boxes_is_measured_again_in_the_challengers(factory: Callable) -> None:
    models = factory()
    params = PARAMS.model_copy(update={"metric": "oks_ap_detected"})
    old = models.offer(people(FEW, "detected 0123"))
    assert promote(models, old, metric="oks_ap_detected").promoted
    challenger = models.offer(people(MANY, "detected 4567"))

    def decide(again: Evaluation):
        return models.registry.promote(models.name, challenger.version, params, "t", "w", lambda bundle: again)

    unmeasured = decide(people(FEW, "detected 4567", ("oks_ap",)))
    assert not unmeasured.promoted
    assert "champion 1 was evaluated anew and not measured by oks_ap_detected" in unmeasured.reason
    elsewhere = decide(people(FEW, "detected 0123"))
    assert not elsewhere.promoted
    assert "boxes detected 4567 here, detected 0123 there" in elsewhere.reason
    assert decide(people(FEW, "detected 4567")).promoted


def test_a_scene_system_takes_over_from_one_that_is_told_by_a_detector(factory: Callable) -> None:
    top_down, scene = factory(), factory()
    dataset = scene.name.removeprefix("pose-") + "-data"
    candidates = [
        top_down.offer(people(FEW, "detected 0123")),
        scene.offer(people(MANY, "none")),
    ]
    params = PARAMS.model_copy(update={"metric": "oks_ap_detected"})
    first = scene.registry.promote_dataset(dataset, candidates[:1], params, "me", "nightly")
    assert first.promoted
    second = scene.registry.promote_dataset(dataset, candidates, params, "me", "nightly")
    assert second.promoted
    assert scene.registry.resolve(f"pose-{dataset}@champion").tags["origin"] == candidates[1].uri


def test_a_damaged_challenger_is_never_promoted(factory: Callable) -> None:
    models = factory()
    version = models.register(WORSE)
    (models.registry.bundle(version.uri) / "model.onnx").write_bytes(b"")
    with pytest.raises(RegistryError, match=r"model\.onnx"):
        promote(models, version)
    assert models.registry.history(models.name) == []


def test_rollback_is_idempotent_and_can_name_a_version(factory: Callable) -> None:
    models = factory()
    for hits in (WORSE, WORSE + 1, WORSE + 2):
        assert promote(models, models.register(hits)).promoted
    entry = models.registry.rollback(models.name, "me", "it limps")
    assert (entry.action, entry.from_version, entry.to_version) == ("rollback", 3, 2)
    assert models.registry.rollback(models.name, "me", "again") == entry
    assert models.registry.resolve(models.name).version == 2
    assert models.registry.rollback(models.name, "me", "further", to=1).to_version == 1
    assert models.registry.resolve(models.name).version == 1
    assert len(models.registry.history(models.name)) == 5


def test_there_is_no_rollback_from_the_first_champion(factory: Callable) -> None:
    models = factory()
    promote(models, models.register(WORSE))
    with pytest.raises(RegistryError, match="no earlier champion"):
        models.registry.rollback(models.name, "me", "why not")


def test_a_champion_moved_by_other_means_is_written_down(factory: Callable) -> None:
    models = factory()
    promote(models, models.register(WORSE))
    second = models.register(WORSE + 1)
    models.registry.store.client.set_registered_model_alias(models.name, "champion", str(second.version))
    assert promote(models, models.register(BETTER)).promoted
    assert [(e.action, e.from_version, e.to_version) for e in models.registry.history(models.name)] == [
        ("promote", None, 1),
        ("found", 1, 2),
        ("promote", 2, 3),
    ]


def test_the_dataset_champion_is_the_best_system_and_the_same_bundle(factory: Callable) -> None:
    slow, fast = factory(), factory()
    candidates = [slow.register(WORSE), fast.register(BETTER)]
    dataset = slow.name.removeprefix("pose-") + "-data"
    decision = slow.registry.promote_dataset(dataset, candidates, PARAMS, "me", "nightly")
    assert decision.promoted
    champion = slow.registry.resolve(f"models:/pose-{dataset}@champion")
    assert champion.source == candidates[1].source
    assert champion.tags["origin"] == candidates[1].uri
    again = slow.registry.promote_dataset(dataset, candidates, PARAMS, "me", "nightly")
    assert not again.promoted
    assert "champion already" in again.reason
    assert len(slow.registry.show(f"pose-{dataset}")) == 1


def _promote_elsewhere(storage: Path, name: str, version: int, answers) -> None:
    decision = Registry(storage).promote(name, version, PARAMS, f"process {version}", "race")
    answers.put((version, decision.promoted, decision.previous))


def test_two_processes_cannot_interleave(factory: Callable) -> None:
    """Whoever comes first, the better one is champion at the end and the ledger is one unbroken chain."""
    models = factory()
    promote(models, models.register(WORSE))
    contenders = [models.register(WORSE + 1), models.register(BETTER)]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    storage = models.registry.store.storage
    processes = [
        context.Process(target=_promote_elsewhere, args=(storage, models.name, c.version, answers)) for c in contenders
    ]
    for process in processes:
        process.start()
    outcome = {version: promoted for version, promoted, _ in (answers.get(timeout=120) for _ in processes)}
    for process in processes:
        process.join(30)
    assert outcome[3]
    assert models.registry.resolve(models.name).version == 3
    entries = models.registry.history(models.name)
    assert [e.from_version for e in entries[1:]] == [e.to_version for e in entries[:-1]]
    assert models.registry.resolve(f"{models.name}@previous").version == entries[-1].from_version
    assert all(not m.name.startswith("pose-lock-") for m in models.registry.store.client.search_registered_models())


def test_the_lock_of_a_process_that_died_here_is_broken_at_once(registry: Registry) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    owner = f"{socket.gethostname()} process {gone.pid}"
    registry.store.client.create_registered_model("pose-lock-left", tags={"token": "theirs", "owner": owner})
    with lock(registry.store, "left", wait=5.0) as held:
        held.still_held()


def test_a_busy_lock_is_named_and_a_dead_owners_lock_is_broken(registry: Registry) -> None:
    with lock(registry.store, "busy") as held:
        with (
            pytest.raises(RegistryError, match=r"pose-lock-busy .*process \d+"),
            lock(registry.store, "busy", wait=0.2),
        ):
            pass
        time.sleep(0.05)
        with lock(registry.store, "busy", stale=0.01) as heir:
            heir.still_held()
            with pytest.raises(RegistryError, match="taken over"):
                held.still_held()
    with lock(registry.store, "busy", wait=0.2):
        pass
