"""Crops that hold less of a person than the network could see are said before a training, not refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pose import training
from pose.config import CropParams
from pose.config_loading import load


@pytest.mark.parametrize(
    ("system", "crop", "said"),
    [
        ("simple_baseline", CropParams(view="person", size=160, margin=2.0), "data.crowd.crop.size = 410"),
        ("simple_baseline", CropParams(view="person", size=336, margin=1.6), ""),
        ("simple_baseline", CropParams(view="image", size=96), ""),
        ("openpose", CropParams(view="person", size=160, margin=2.0), ""),
    ],
)
def test_coarse_crops_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], system: str, crop: CropParams, said: str
) -> None:
    monkeypatch.setattr(training, "describe", lambda folder: SimpleNamespace(name="crowd", crop=crop))
    spec: Any = SimpleNamespace(system=system, data=None, system_params=load().systems[system])
    training.say_where_crops_are_coarse(spec)
    assert said in (err := capsys.readouterr().err)
    assert bool(err) is bool(said)


def test_the_shipped_coco_crops_have_the_detail_that_192_x_256_shows() -> None:
    crop = load().data["coco"].crop
    assert crop.size / crop.margin >= 256 / load().systems["simple_baseline"].padding
