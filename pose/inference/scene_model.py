"""SceneModel: a scene-view model, everyone in a whole picture: end-to-end pose systems and person detectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from pose.data import scenes
from pose.data.batch import SceneBatch
from pose.inference.weights import Trained, trained
from pose.people import People
from pose.skeleton import Skeleton


@dataclass(frozen=True)
class SceneModel:
    """One loaded model. Pictures are fitted into its canvas, the aspect kept."""

    name: str
    find: Callable[[SceneBatch], People]
    """Everyone in one batch as pose.data.scenes.unlabelled makes it."""
    skeleton: Skeleton
    input_size: tuple[int, int]
    """Width and height of the canvas."""
    finds_joints: bool
    """False for a detector: its people are boxes."""

    @staticmethod
    def load(folder: Path) -> SceneModel:
        """A bundle or a finished training folder. Raises what `trained` raises."""
        return of_trained(trained(folder), folder)

    def predict(self, images: Sequence[Image.Image], ids: Sequence[int]) -> People:
        """Everyone in these RGB pictures, in their pixels, picture by picture. At least one picture."""
        # One at a time: an exported graph takes no more, and a crowd needs no more memory than it must.
        side = max(self.input_size)
        parts = [
            self.find(scenes.unlabelled([image], [image_id], side, self.skeleton))
            for image, image_id in zip(images, ids, strict=True)
        ]
        return People.concatenate(parts)


def of_trained(model: Trained, folder: Path) -> SceneModel:
    """The torch network of a scene-view system."""
    system = model.system

    @torch.inference_mode()
    def find(batch: SceneBatch) -> People:
        ready = system.prepare(batch)
        return system.decode(system.forward(system.network, ready), ready)

    return SceneModel(f"{model.name} ({folder})", find, system.skeleton, system.params.input_size, system.finds_joints)
