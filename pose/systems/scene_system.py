"""What the systems that see whole scenes share: any number of people in each image, and none of them by itself."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from pose.data.batch import SceneBatch
from pose.errors import PoseError
from pose.found import Found, to_people
from pose.people import People
from pose.systems.base import Joints, System


class SceneSystem(System):
    """One network for everyone in the image."""

    view = "scene"

    @property
    @abstractmethod
    def score_floor(self) -> float:
        """People are reported from this score on."""

    @property
    @abstractmethod
    def suppression(self) -> str:
        """How detections of one person are thinned out: a few words for protocols."""

    @abstractmethod
    def people(self, outputs: Any) -> Found:
        """Decoding in pure tensor code, so that an exported graph can hold it."""

    crowds: ClassVar[bool] = False
    """Whether an exported graph says of how many candidates there was no room, by `left_away`."""

    def left_away(self, outputs: Any) -> Tensor:
        """[] int64: candidates of one image for which `people` has no room. Only for systems that say `crowds`."""
        raise NotImplementedError(f"{type(self).__name__} does not count candidates")

    def joints(self, outputs: Any) -> Joints:
        """Raises PoseError: there is no one person per image; `people` has all of them."""
        raise PoseError(
            f"{type(self).__name__} sees whole scenes and answers with any number of people; its `people` gives them, "
            "`joints` is for systems that see one person"
        )

    def decode(self, outputs: Any, batch: SceneBatch) -> People:
        """One row per person found, in pixels of the original images, image after image."""
        return to_people(self.people(outputs), batch)
