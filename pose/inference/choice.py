"""Which pipeline a model, a detector and given boxes make together."""

from __future__ import annotations

import json
from pathlib import Path

from pose.bundle import describe, require_model
from pose.data.detections import Detections
from pose.decoding.settling import BY_OKS, Settling, from_json
from pose.errors import ConfigError
from pose.inference.pipelines import DetectedBoxes, EndToEnd, GivenBoxes, Pipeline, SinglePerson, TopDown
from pose.inference.predictor import Predictor
from pose.inference.scene_model import SceneModel
from pose.inference.weights import trained
from pose.systems import SYSTEMS


def choose(
    model: Path, detector: Path | None = None, boxes: Detections | None = None, min_score: float = 0.0
) -> Pipeline:
    """Scene models alone, person-view models with a detector's boxes, given ones, or the whole picture as one.

    min_score: a detector's boxes that are scored lower are not looked into; given boxes all are. Raises ConfigError for
    what does not go together, and what loading raises.
    """
    name, scene = system_of(model)
    if scene:
        if detector is not None or boxes is not None:
            raise ConfigError(f"{name} ({model}) finds people by itself; leave --detector and --boxes away")
        return EndToEnd(SceneModel.load(model))
    predictor = Predictor.load(model)
    if detector is None and boxes is None:
        return SinglePerson(predictor)
    if predictor.crop.view == "image":
        raise ConfigError(
            f"{predictor.name} was trained on whole images with one person in each and cannot look into boxes; leave "
            "--detector and --boxes away, or choose a model trained on the view 'person' (`crop.view` of its dataset)"
        )
    settle = _settling(name, model).people
    if boxes is not None:
        return TopDown(predictor, GivenBoxes(boxes), settle)
    assert detector is not None
    found, scene = system_of(detector)
    if not scene:
        raise ConfigError(
            f"{found} ({detector}) finds one person's joints, not where people are; --detector takes a scene model "
            "such as person_detector or keypoint_rcnn"
        )
    return TopDown(predictor, DetectedBoxes(SceneModel.load(detector), min_score), settle)


def system_of(folder: Path) -> tuple[str, bool]:
    """A model's system by name, and whether it looks at whole scenes. Raises ConfigError for a folder without one."""
    require_model(folder)
    described = folder / "model.json"
    path = described if described.is_file() else folder / "spec.json"
    try:
        facts = json.loads(path.read_text())
        name = str(facts["system"])
    except (KeyError, TypeError, ValueError):
        return "", False  # what loads it says what is wrong with it
    return name, (SYSTEMS[name].view if name in SYSTEMS else facts.get("view")) == "scene"


def _settling(name: str, model: Path) -> Settling:
    """As the bundle says; a training folder, and a bundle of before bundles said it, by its system."""
    if (model / "model.json").is_file() and "settling" in (facts := describe(model)):
        return from_json(facts["settling"])
    return trained(model).system.settling if name in SYSTEMS else BY_OKS
