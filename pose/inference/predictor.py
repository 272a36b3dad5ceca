"""Predictor: a person-view model, one person per box, as an exported graph or with a training folder's weights."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from pose.bundle import describe, require_model
from pose.config import CropParams
from pose.data import views
from pose.data.batch import Batch
from pose.data.crops import crop_affine, extract, invert, transform
from pose.errors import ConfigError, ExportError, PoseError
from pose.inference.weights import network_of, trained
from pose.people import People
from pose.skeleton import Skeleton

Network = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""uint8 RGB [B, 3, H, W] to keypoints [B, K, 2] in pixels of that input, scores [B, K] and presence [B, K]."""

CHUNK = 32
"""Boxes that go through the network together: a picture with 60 people needs no more memory than one with 32."""


@dataclass(frozen=True)
class Predictor:
    """One loaded model. Views and resizes are those of the data it was trained on."""

    name: str
    network: Network
    skeleton: Skeleton
    crop: CropParams
    input_size: tuple[int, int]
    """Width and height."""
    padding: float = 1.25
    """What of the box's surroundings a person-view network sees; see SystemParams.padding."""
    finds_joints: ClassVar[bool] = True

    @staticmethod
    def load(folder: Path) -> Predictor:
        """A bundle (model.json, model.onnx) or a finished training folder (spec.json, model.safetensors).

        Raises ConfigError for a folder that is neither, ExportError for a bundle that does not load.
        """
        require_model(folder)
        return _from_bundle(folder) if (folder / "model.json").is_file() else _from_training(folder)

    def predict(self, images: Sequence[Image.Image], first_id: int = 0) -> People:
        """One person per RGB picture, the whole of it as the box; image ids count from `first_id`."""
        people = self.in_boxes(images, np.arange(len(images)), whole(images))
        return replace(people, image_ids=people.image_ids + first_id)

    def in_boxes(self, images: Sequence[Image.Image], which: np.ndarray, boxes: np.ndarray) -> People:
        """One person per box, in order, in pixels of their picture; image ids are the values of `which`.

        which: [N] int64, the picture each box is in. boxes: [N, 4] xyxy, of positive area. A model of whole images
        takes whole images alone (ConfigError). Raises PoseError for answers that are not numbers.
        """
        sizes = np.array([images[i].size for i in which], np.float32).reshape(-1, 2)
        boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
        if self.crop.view == "image" and not np.array_equal(boxes, np.concatenate([0 * sizes, sizes], axis=1)):
            raise ConfigError(
                f"{self.name} was trained on whole images, one person in each, and cannot look into boxes; choose a "
                "model of the view 'person' (`pose systems`, `crop.view` of its dataset), or leave the boxes away."
            )
        answers = [self._answer(*inputs) for inputs in self.inputs(images, which, boxes)]
        k = self.skeleton.size
        nothing = [(np.zeros((0, k, 2), np.float32), np.zeros((0, k), np.float32), np.zeros((0, k), np.float32))]
        keypoints, scores, presence = (np.concatenate(part) for part in zip(*(answers or nothing), strict=True))
        people = People(
            image_ids=np.asarray(which, np.int64),
            image_sizes=sizes,
            keypoints=keypoints,
            scores=scores,
            presence=presence,
            boxes=boxes,
            person_scores=scores.mean(axis=1),
        )
        require_numbers(people, self.name, f"image {{}} of {len(images)} in this batch")
        return people

    def inputs(
        self, images: Sequence[Image.Image], which: np.ndarray, boxes: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What the network sees of each box, some at a time: uint8 [B, 3, H, W], and its affine to the original."""
        for start in range(0, len(which), CHUNK):
            part = slice(start, start + CHUNK)
            yield self._view([images[i] for i in which[part]], np.asarray(boxes[part], np.float32))

    def _view(self, images: Sequence[Image.Image], boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        # The stored crop first and the network's input from it, as in preparation and evaluation.
        to_crop = np.stack([crop_affine(self.crop, box, image.size) for image, box in zip(images, boxes, strict=True)])
        stored = np.stack([self._stored(image, affine) for image, affine in zip(images, to_crop, strict=True)])
        to_original = torch.from_numpy(invert(to_crop).astype(np.float32))
        count, k = len(images), self.skeleton.size
        batch = Batch(
            images=torch.from_numpy(stored),
            keypoints=torch.zeros(count, k, 2),
            labelled=torch.zeros(count, k, dtype=torch.bool),
            presence=torch.zeros(count, k),
            to_original=to_original,
            sample=torch.arange(count),
            image_ids=torch.arange(count),
            image_sizes=torch.tensor([image.size for image in images], dtype=torch.float32),
            boxes=torch.from_numpy(boxes),
            view=self.crop.view,
            margin=self.crop.margin,
        )
        seen = views.plain(batch, self.input_size, self.padding).contiguous().numpy()
        back = views.inverse(views.view(batch, self.input_size, self.padding))
        return seen, views.compose(to_original.double(), back).numpy()

    def _stored(self, image: Image.Image, to_crop: np.ndarray) -> np.ndarray:
        """[3, S, S] uint8."""
        # Through a JPEG like the stored crops: networks learn from it, and figures measured on it hold here.
        encoded = io.BytesIO()
        extract(image.convert("RGB"), to_crop, self.crop.size).save(encoded, "JPEG", quality=self.crop.quality)
        return np.asarray(Image.open(encoded)).transpose(2, 0, 1)

    def _answer(self, seen: np.ndarray, to_original: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        keypoints, scores, presence = self.network(seen)
        original = transform(to_original, keypoints.astype(np.float64))
        return original.astype(np.float32), scores.astype(np.float32), presence.astype(np.float32)


def whole(images: Sequence[Image.Image]) -> np.ndarray:
    """[N, 4] float32: each picture as one box."""
    sizes = np.array([image.size for image in images], np.float32).reshape(-1, 2)
    return np.concatenate([np.zeros_like(sizes), sizes], axis=1)


def require_numbers(people: People, model: str, image: str) -> None:
    """Raises PoseError where one of the people holds values that are not finite. image: how their image is named."""
    values = (people.keypoints, people.scores, people.presence, people.boxes, people.person_scores)
    fine = np.all([np.isfinite(each).all(axis=tuple(range(1, each.ndim))) for each in values], axis=0)
    if not fine.all():
        broken = image.format(people.image_ids[~fine][0])
        raise PoseError(
            f"what {model} says of {broken} holds values that are not numbers, so nobody can be found there; the "
            "weights are broken or precision is too low. Take another version of the model, or train again with a "
            "lower learning rate or clip_norm set"
        )


def onnx_session(path: Path) -> Any:
    """An ONNX graph on the CPU, with as many threads as there are cores."""
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own types, which it does not export
        raise ExportError(
            f"{path} does not load in ONNX Runtime: {' '.join(str(error).split())}; export it again"
        ) from None


def _from_bundle(folder: Path) -> Predictor:
    facts = describe(folder)
    session = onnx_session(folder / "model.onnx")

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        keypoints, scores, presence = session.run(["keypoints", "scores", "presence"], {"images": images})
        return keypoints, scores, presence

    padding = facts.get("params", {}).get("padding", Predictor.padding)
    name = f"{facts['system']} ({folder})"
    return Predictor(name, run, facts["skeleton"], facts["crop"], facts["input_size"], padding)


def _from_training(folder: Path) -> Predictor:
    model = trained(folder)
    params = model.system.params
    return Predictor(
        name=f"{model.name} ({folder})",
        network=network_of(model.system),
        skeleton=model.system.skeleton,
        crop=model.crop,
        input_size=params.input_size,
        padding=params.padding,
    )
