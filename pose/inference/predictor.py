"""Predictor: pictures in, people out, with an exported bundle or with the weights of a training folder."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pose.bundle import require_model
from pose.config import CropParams
from pose.data.crops import crop_affine, extract, invert, transform
from pose.errors import ConfigError, ExportError
from pose.people import People
from pose.skeleton import Skeleton, skeleton_named

Network = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""uint8 RGB [B, 3, S, S] to keypoints [B, K, 2] in pixels of that input, scores [B, K] and presence [B, K]."""


@dataclass(frozen=True)
class Predictor:
    """One loaded model. Views and resizes are those of the data it was trained on."""

    name: str
    network: Network
    skeleton: Skeleton
    crop: CropParams
    input_size: tuple[int, int]

    @staticmethod
    def load(folder: Path) -> Predictor:
        """A bundle (model.json, model.onnx) or a finished training folder (spec.json, model.safetensors).

        Raises ConfigError for a folder that is neither, or for a model that needs a box around each person;
        ExportError for a bundle that does not load.
        """
        require_model(folder)
        predictor = _from_bundle(folder) if (folder / "model.json").is_file() else _from_training(folder)
        if predictor.crop.view != "image":
            raise ConfigError(
                f"{predictor.name} was trained on the view {predictor.crop.view!r} and needs a box around each person, "
                "which prediction from pictures alone does not have; expected a model of the view 'image'."
            )
        return predictor

    def predict(self, images: Sequence[Image.Image], first_id: int = 0) -> People:
        """One person per RGB picture, in its pixels; image ids count from `first_id`."""
        sizes = np.array([image.size for image in images], dtype=np.float32).reshape(-1, 2)
        boxes = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
        if not images:
            none = np.zeros((0, self.skeleton.size), np.float32)
            nowhere = np.zeros((0, self.skeleton.size, 2), np.float32)
            return People(np.zeros(0, np.int64), sizes, nowhere, none, none, boxes, np.zeros(0, np.float32))
        # The stored crop first and the network's input from it, as in preparation and evaluation.
        to_crop = np.stack([crop_affine(self.crop, box, image.size) for image, box in zip(images, boxes, strict=True)])
        inputs = np.stack([self._input(image, affine) for image, affine in zip(images, to_crop, strict=True)])
        keypoints, scores, presence = self.network(inputs)
        in_crop = keypoints.astype(np.float64) * (self.crop.size / np.array(self.input_size))
        return People(
            image_ids=np.arange(first_id, first_id + len(images), dtype=np.int64),
            image_sizes=sizes,
            keypoints=transform(invert(to_crop), in_crop).astype(np.float32),
            scores=scores.astype(np.float32),
            presence=presence.astype(np.float32),
            boxes=boxes,
            person_scores=scores.astype(np.float32).mean(axis=1),
        )

    def _input(self, image: Image.Image, to_crop: np.ndarray) -> np.ndarray:
        """[3, S, S] uint8, what the network sees of one picture."""
        # Through a JPEG like the stored crops: networks learn from it, and figures measured on it hold here.
        stored = io.BytesIO()
        extract(image.convert("RGB"), to_crop, self.crop.size).save(stored, "JPEG", quality=self.crop.quality)
        # Pillow's bilinear filter widens as it shrinks: the antialiased triangle of pose.data.augment.resize.
        seen = Image.open(stored).resize(self.input_size, Image.Resampling.BILINEAR)
        return np.asarray(seen).transpose(2, 0, 1)


def _from_bundle(folder: Path) -> Predictor:
    path = folder / "model.json"
    try:
        facts = json.loads(path.read_text())
        skeleton = skeleton_named(facts["skeleton"])
        crop, input_size, system = CropParams.model_validate(facts["crop"]), tuple(facts["input_size"]), facts["system"]
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(
            f"{path} does not describe a model ({type(error).__name__}: {error}); export it again"
        ) from None
    return Predictor(f"{system} ({folder})", _onnx_network(folder / "model.onnx"), skeleton, crop, input_size)


def _from_training(folder: Path) -> Predictor:
    from pose.inference.weights import network_of, trained

    model = trained(folder)
    name, skeleton = f"{model.name} ({folder})", model.system.skeleton
    return Predictor(name, network_of(model.system), skeleton, model.crop, model.system.params.input_size)


def _onnx_network(path: Path) -> Network:
    """An ONNX graph on the CPU, with as many threads as there are cores."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own types, which it does not export
        raise ExportError(
            f"{path} does not load in ONNX Runtime: {' '.join(str(error).split())}; export it again"
        ) from None

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        keypoints, scores, presence = session.run(["keypoints", "scores", "presence"], {"images": images})
        return keypoints, scores, presence

    return run
