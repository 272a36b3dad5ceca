from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from pose.config import PromotionParams
from pose.errors import RegistryError
from pose.evaluation import Evaluation
from pose.metrics.ranking import Ranking
from pose.protocol import Protocol
from pose.registry import Registry, promotion

PROTOCOL = Protocol(
    dataset="drawn", data="da7a", split="test", boxes="truth", flip_test=False, sigmas=(0.1, 0.2), nms="oks 0.9"
)


def tagged(**protocols: Protocol) -> dict[str, str]:
    named = {"" if key == "truth" else key: {"id": p.id, **p.parts()} for key, p in protocols.items()}
    return {"protocols": json.dumps(named)}


def test_the_id_is_of_everything_that_a_figure_depends_on() -> None:
    changed = {
        "dataset": "other", "data": "beef", "split": "val", "boxes": "none", "flip_test": True, "sigmas": None,
        "nms": "none", "evaluator": "0", "scales": (0.5, 1.0),
    }  # fmt: skip
    assert set(changed) == set(vars(PROTOCOL))
    ids = {replace(PROTOCOL, **{name: value}).id for name, value in changed.items()}
    assert len(ids | {PROTOCOL.id}) == 10
    assert Protocol.of(PROTOCOL.parts()) == PROTOCOL
    assert replace(PROTOCOL).id == PROTOCOL.id


def test_a_single_scale_has_the_id_and_the_record_of_before_there_were_scales() -> None:
    recorded = {
        "dataset": "drawn", "data": "da7a", "split": "test", "boxes": "truth", "flip_test": False,
        "sigmas": [0.1, 0.2], "nms": "oks 0.9", "evaluator": "1",
    }  # fmt: skip
    assert PROTOCOL.parts() == recorded
    assert Protocol.of(recorded) == PROTOCOL
    assert PROTOCOL.id == "2c33451bae9c"
    several = replace(PROTOCOL, scales=(0.5, 1.0))
    assert Protocol.of(json.loads(json.dumps(several.parts()))) == several
    assert PROTOCOL.differences(several) == {"scales": ((1.0,), (0.5, 1.0))}
    assert PROTOCOL.rivals(several)


def test_versions_of_one_protocol_stand_side_by_side(factory: Callable, registry: Registry) -> None:
    a, b = (factory().register(np.full(20, hits), tagged(truth=PROTOCOL)) for hits in (5, 7))
    table = registry.compare([f"{a.name}/1", f"{b.name}/1"])
    assert table.models == (f"{a.name}/1", f"{b.name}/1")
    assert table.figures["pck_image_12"] == (0.5, 0.7)
    assert table.protocol == PROTOCOL.id


def test_who_finds_people_by_itself_thins_them_out_by_itself(factory: Callable, registry: Registry) -> None:
    ways = [replace(PROTOCOL, boxes="none", nms=nms) for nms in ("grouping", "box IoU 0.65", "none")]
    versions = [factory().register(np.full(20, 5), tagged(truth=protocol)) for protocol in ways]
    table = registry.compare([f"{version.name}/1" for version in versions])
    assert table.figures["pck_image_12"] == (0.5, 0.5, 0.5)
    boxed = factory().register(np.full(20, 5), tagged(truth=replace(PROTOCOL, nms="pose nms, released")))
    whole = factory().register(np.full(20, 5), tagged(truth=PROTOCOL))
    with pytest.raises(RegistryError, match=r"nms is pose nms, released and oks 0\.9"):
        registry.compare([f"{boxed.name}/1", f"{whole.name}/1"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"boxes": "none"}, "boxes is truth and none"), ({"data": "beef"}, "data is da7a and beef"),
     ({"flip_test": True}, "flip_test is False and True"),
     ({"scales": (0.5, 1.0)}, r"scales is \(1.0,\) and \(0.5, 1.0\)")],
)  # fmt: skip
def test_other_protocols_are_not_compared(factory: Callable, registry: Registry, changed: dict, said: str) -> None:
    a = factory().register(np.full(20, 5), tagged(truth=PROTOCOL))
    b = factory().register(np.full(20, 7), tagged(truth=replace(PROTOCOL, **changed)))
    with pytest.raises(RegistryError, match=f"not comparable: {said}"):
        registry.compare([f"{a.name}/1", f"{b.name}/1"])


def test_a_version_without_protocol_and_other_detections_are_not_compared(
    factory: Callable, registry: Registry
) -> None:
    plain = factory().register(np.full(20, 5))
    one = replace(PROTOCOL, boxes="detected 0123")
    a = factory().register(np.full(20, 5), tagged(truth=PROTOCOL, _detected=one))
    b = factory().register(np.full(20, 5), tagged(truth=PROTOCOL, _detected=replace(one, boxes="detected 4567")))
    with pytest.raises(RegistryError, match="without a protocol"):
        registry.compare([f"{a.name}/1", f"{plain.name}/1"])
    with pytest.raises(RegistryError, match="boxes is detected 0123 and detected 4567"):
        registry.compare([f"{a.name}/1", f"{b.name}/1"])


def test_only_rivals_compete_for_a_dataset(factory: Callable) -> None:
    whole = replace(PROTOCOL, boxes="none")
    a = factory().register(np.full(20, 5), tagged(truth=PROTOCOL))
    flipped = factory().register(np.full(20, 6), tagged(truth=replace(PROTOCOL, flip_test=True)))
    scene = factory().register(np.full(20, 9), tagged(truth=whole))
    assert promotion.comparable([scene, a, flipped], "pck_image_12") == [a, flipped]
    assert promotion.comparable([a], "oks_ap") == []
    assert promotion.left_out([scene, a, flipped], "pck_image_12") == {
        scene.uri: "it was measured by another protocol than most (boxes none here, truth there)"
    }
    assert promotion.left_out([a], "oks_ap") == {a.uri: "it was not measured by oks_ap"}


DETECTED = replace(PROTOCOL, boxes="detected 0123")
WHOLE = replace(PROTOCOL, boxes="none", nms="none")


@pytest.mark.parametrize(
    ("ours", "theirs", "rivals"),
    [
        (DETECTED, WHOLE, True),
        (DETECTED, replace(WHOLE, flip_test=True), True),
        (DETECTED, replace(DETECTED, boxes="detected 4567"), False),
        (PROTOCOL, WHOLE, False),
        (PROTOCOL, DETECTED, False),
        (DETECTED, replace(DETECTED, nms="pose nms, released"), True),
        (DETECTED, replace(WHOLE, split="val"), False),
    ],
)
def test_who_finds_people_by_itself_rivals_whoever_is_told_by_a_detector(
    ours: Protocol, theirs: Protocol, rivals: bool
) -> None:
    assert ours.rivals(theirs) is theirs.rivals(ours) is rivals


def test_two_detectors_do_not_compete_through_a_third(factory: Callable) -> None:
    """`none` rivals both, they not each other."""
    other = replace(DETECTED, boxes="detected 4567")
    hits, metric = np.full(20, 5), "oks_ap_detected"
    named = {"metrics": json.dumps({metric: 0.5})}
    scene, a, b, c = (
        replace(version, tags=version.tags | named)
        for version in (factory().register(hits, tagged(_detected=p)) for p in (WHOLE, DETECTED, other, DETECTED))
    )
    assert promotion.comparable([scene, b, a, c], metric) == [scene, a, c]
    reason = "it was measured by another protocol than most (boxes detected 4567 here, detected 0123 there)"
    assert promotion.left_out([scene, b, a, c], metric) == {b.uri: reason}


def evaluation_of(right: np.ndarray) -> Evaluation:
    """Thirty images with one person and one detection each."""
    image = np.arange(30)
    ranking = Ranking(image, np.tile(right[:, None], 10), np.zeros((30, 10), bool), np.ones(30, np.int64))
    value = float(ranking.precision(ranking.once)[0])
    return Evaluation(
        split="test", dataset="drawn", people=30, image_ids=image, confidence=0.95, resamples=100, joints=(), limbs=(),
        metrics={"oks_ap": value, "mean_pose_oks_ap": 0.0}, intervals={}, baselines={}, per_joint={},
        per_joint_intervals={}, per_limb={}, curves={}, per_image={}, not_applicable=(), rankings={"oks_ap": ranking},
        protocols={"": PROTOCOL},
    )  # fmt: skip


def test_promotion_by_average_precision_is_paired_over_images() -> None:
    params = PromotionParams(metric="oks_ap", margin=0.0, resamples=300, confidence=0.95)
    weak, strong = evaluation_of(np.arange(30) % 3 == 0), evaluation_of(np.arange(30) % 3 < 2)
    difference, low, high = promotion.compare(strong, weak, params)
    assert 0 < low < difference < high
    assert difference == pytest.approx(strong.metrics["oks_ap"] - weak.metrics["oks_ap"])
    assert promotion.same_images(strong, weak, "oks_ap")
    other = replace(weak, protocols={"": replace(PROTOCOL, boxes="none")})
    assert not promotion.same_images(strong, other, "oks_ap")
    assert promotion.same_images(strong, replace(weak, protocols={"": replace(PROTOCOL, flip_test=True)}), "oks_ap")


def test_the_command_refuses_with_the_registrys_exit_code(
    factory: Callable, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pose.commands import registry as command

    monkeypatch.setattr(command, "_registry", lambda profile, set_: registry)
    a, b = (factory().register(np.full(20, hits), tagged(truth=PROTOCOL)) for hits in (5, 7))
    other = factory().register(np.full(20, 5), tagged(truth=replace(PROTOCOL, split="val")))
    runner = CliRunner()
    shown = runner.invoke(command.app, ["show", f"{a.name}/1", "--compare", f"{b.name}/1", "--json"])
    assert json.loads(shown.stdout)["figures"]["pck_image_12"] == [0.5, 0.7]
    refused = runner.invoke(command.app, ["show", f"{a.name}/1", "--compare", f"{other.name}/1"])
    assert isinstance(refused.exception, RegistryError)
    assert refused.exception.exit_code == 6
    assert "split is test and val" in str(refused.exception)
    listed = runner.invoke(command.app, ["show", a.name, "--json"])
    assert json.loads(listed.stdout)[0]["protocol"] == PROTOCOL.id


def test_each_figure_stands_beside_its_own_protocol(
    factory: Callable, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pose.commands import registry as command

    monkeypatch.setattr(command, "_registry", lambda profile, set_: registry)
    measured = evaluation_of(np.arange(30) % 3 == 0)
    both = replace(measured, metrics=measured.metrics | {"oks_ap_detected": 0.25})
    boxed, plain = (factory().offer(made, tagged(truth=PROTOCOL, **more)) for made, more in (
        (both, {"_detected": DETECTED}), (measured, {})))  # fmt: skip
    expected = {"oks_ap": PROTOCOL.id, "mean_pose_oks_ap": PROTOCOL.id, "oks_ap_detected": DETECTED.id}
    runner = CliRunner()
    listed = runner.invoke(command.app, ["show", boxed.name, "--json"])
    assert json.loads(listed.stdout)[0]["protocols"] == expected
    compare = ["show", f"{plain.name}/1", "--compare", f"{boxed.name}/1"]
    assert json.loads(runner.invoke(command.app, [*compare, "--json"]).stdout)["protocols"] == expected
    rows = {line.split("│")[1].strip(): line for line in runner.invoke(command.app, compare).stdout.splitlines()
            if line.startswith("│")}  # fmt: skip
    for metric, protocol in expected.items():
        assert protocol in rows[metric]
