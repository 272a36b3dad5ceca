from __future__ import annotations

import numpy as np
import pytest

from pose.errors import ConfigError
from pose.skeleton import SKELETONS, Skeleton, skeleton_named


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
def test_mirroring_twice_changes_nothing_and_swaps_every_side(skeleton: Skeleton) -> None:
    mirror = skeleton.mirror
    assert np.array_equal(mirror[mirror], np.arange(skeleton.size))
    for k, joint in enumerate(skeleton.joints):
        swapped = joint.replace("left", "*").replace("right", "left").replace("*", "right")
        assert skeleton.joints[mirror[k]] == swapped


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
def test_limbs_connect_all_joints_that_limbs_name(skeleton: Skeleton) -> None:
    reached = {0}
    while True:
        more = {int(b) for a, b in skeleton.limb_indices if a in reached} | {
            int(a) for a, b in skeleton.limb_indices if b in reached
        }
        if more <= reached:
            break
        reached |= more
    assert reached == set(range(skeleton.size))


def test_coco_sigmas_are_those_of_pycocotools() -> None:
    from pycocotools.cocoeval import Params

    coco = skeleton_named("coco17")
    np.testing.assert_allclose(coco.oks_sigmas, Params(iouType="keypoints").kpt_oks_sigmas)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="lsp14, coco17"):
        skeleton_named("lsp41")
    with pytest.raises(ConfigError, match=r"no joint 'tail'.*neck"):
        skeleton_named("lsp14").index("tail")
