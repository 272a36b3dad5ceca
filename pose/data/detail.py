"""Whether a prepared dataset's crops hold the detail that a network could see."""

from __future__ import annotations

import math

from pose.config import SystemParams
from pose.data.shards import DatasetInfo
from pose.progress import say

COARSE = 0.9
"""Of the size a network sees people at: stored smaller than that, they lose detail that can be seen."""


def say_where_crops_are_coarse(system: str, view: str, params: SystemParams, info: DatasetInfo) -> None:
    """Stored people smaller than the network sees them look the same to it whatever its input size.

    system, view: of the network, its name in params.yaml and what it sees. Whoever sees whole scenes sees no crops.
    """
    if view != "person" or info.crop.view != "person":
        return
    stored, seen = info.crop.size / info.crop.margin, max(params.input_size) / params.padding
    if stored < COARSE * seen:
        say(
            f"{system} sees people {seen:.0f} px long, but {info.name} stores them {stored:.0f} px long; "
            f"data.{info.name}.crop.size = {math.ceil(seen * info.crop.margin)} would keep their detail"
        )
