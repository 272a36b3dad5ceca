"""SceneModel: a scene-view model, everyone in a whole picture: end-to-end pose systems and person detectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pose.bundle import describe, require_model
from pose.data import scenes
from pose.data.batch import SceneBatch
from pose.data.crops import transform
from pose.inference.predictor import onnx_session, require_numbers
from pose.inference.weights import Trained, trained
from pose.people import People
from pose.progress import say
from pose.skeleton import Skeleton
from pose.systems import SYSTEMS

OUTPUTS = ("boxes", "person_scores", "keypoints", "scores", "presence")
"""Of an exported graph, see pose.export_scenes."""
LEFT_AWAY = "left_away"
"""Of graphs that group candidates, but for those exported before these were counted."""


@dataclass(frozen=True)
class SceneModel:
    """One loaded model. Pictures are fitted into its canvas, the aspect kept."""

    name: str
    find: Callable[[SceneBatch], People]
    """Everyone in a batch of one picture as pose.data.scenes.unlabelled makes it."""
    skeleton: Skeleton
    input_size: tuple[int, int]
    """Width and height of the canvas."""
    finds_joints: bool
    """False for a detector: its people are boxes."""

    @staticmethod
    def load(folder: Path) -> SceneModel:
        """A bundle (its graph, where that is all of the system's decoding) or a finished training folder (its weights).

        Raises ConfigError for a folder that is neither, ExportError for a bundle that does not load, TrainingError
        for a training that has not finished.
        """
        require_model(folder)
        if (folder / "model.json").is_file() and not _graph_lacks(folder):
            return _from_bundle(folder)
        return _from_training(trained(folder), folder)

    def predict(self, images: Sequence[Image.Image], ids: Sequence[int]) -> People:
        """Everyone in these RGB pictures, in their pixels, picture by picture. At least one picture.

        Raises PoseError for people whose values are not numbers.
        """
        # One at a time: an exported graph takes no more, and a crowd needs no more memory than it must.
        side = max(self.input_size)
        parts = [
            self.find(scenes.unlabelled([image], [image_id], side, self.skeleton))
            for image, image_id in zip(images, ids, strict=True)
        ]
        people = People.concatenate(parts)
        require_numbers(people, self.name, "image id {}")
        return people


def _graph_lacks(folder: Path) -> str:
    system = SYSTEMS.get(describe(folder)["system"])
    return system.card.graph_lacks if system else ""


def _from_training(model: Trained, folder: Path) -> SceneModel:
    system = model.system

    @torch.inference_mode()
    def find(batch: SceneBatch) -> People:
        ready = system.prepare(batch)
        return system.decode(system.forward(system.network, ready), ready)

    return SceneModel(f"{model.name} ({folder})", find, system.skeleton, system.params.input_size, system.finds_joints)


def _from_bundle(folder: Path) -> SceneModel:
    facts = describe(folder)
    session = onnx_session(folder / "model.onnx")
    size = facts["input_size"]
    counts = any(output.name == LEFT_AWAY for output in session.get_outputs())
    wanted = [*OUTPUTS, LEFT_AWAY] if counts else [*OUTPUTS]
    warned = False

    def find(batch: SceneBatch) -> People:
        nonlocal warned
        seen = scenes.plain(batch, size).contiguous().numpy()
        answer = session.run(wanted, {"images": seen})
        if counts and answer[-1] > 0 and not warned:
            warned = True
            _warn(facts, int(answer[-1]), int(batch.image_ids[0]))
        return to_people(answer[: len(OUTPUTS)], batch, size)

    system = SYSTEMS.get(facts["system"])
    finds_joints = system is None or system.finds_joints
    return SceneModel(f"{facts['system']} ({folder})", find, facts["skeleton"], size, finds_joints)


def _warn(facts: dict, left_away: int, image_id: int) -> None:
    """Once: a video would have a line for every frame."""
    say(
        f"warning: the exported graph had no room for {left_away} candidates in image id {image_id}; it keeps the "
        f"highest {facts['params']['grouping']['candidates']} of each joint. If people are missing, export it again "
        f"with a higher systems.{facts['system']}.grouping.candidates, or peak. Later images like it are not named"
    )


def to_people(answer: Sequence[np.ndarray], batch: SceneBatch, size: tuple[int, int]) -> People:
    """What a graph says (OUTPUTS, in pixels of its canvas) of a batch of one picture; boxes are clipped to it."""
    boxes, person_scores, keypoints, scores, presence = (part.astype(np.float32) for part in answer)
    extent, original = batch.extents[0].double().numpy(), batch.image_sizes[0].double().numpy()
    to_original = batch.to_original[0].double().numpy()
    # The canvas shows the stored picture by one factor, its corner in the canvas' own.
    to_original = np.column_stack([to_original[:, :2] / (np.array(size) / extent).min(), to_original[:, 2]])
    count = len(boxes)
    corners = np.clip(transform(to_original, boxes.reshape(-1, 2).astype(np.float64)), 0, original)
    return People(
        image_ids=np.full(count, int(batch.image_ids[0]), np.int64),
        image_sizes=np.tile(original.astype(np.float32), (count, 1)),
        keypoints=transform(to_original, keypoints.astype(np.float64)).astype(np.float32),
        scores=scores,
        presence=presence,
        boxes=corners.reshape(-1, 4).astype(np.float32),
        person_scores=person_scores,
    )
