"""The R-CNN systems say what torchvision's own models say with the same weights, and count the same losses."""

from collections import OrderedDict

import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn, keypointrcnn_resnet50_fpn
from torchvision.models.detection.roi_heads import keypointrcnn_loss
from torchvision.ops import MultiScaleRoIAlign

from pose.config_loading import load
from pose.errors import TrainingError
from pose.layers.keypoint_maps import confidences, keypoint_loss, peaks
from pose.layers.regions import pool
from pose.skeleton import COCO17, LSP14
from pose.systems import create

WIDTH, HEIGHT = 128, 96
BUDGET = {"proposals_test": 40, "proposals_train": 40, "detections": 6}
THEIRS = {"weights": None, "weights_backbone": None, "min_size": HEIGHT, "max_size": WIDTH, "box_detections_per_img": 6}
THEIRS |= {"rpn_pre_nms_top_n_test": 40, "rpn_post_nms_top_n_test": 40}


def system(name, skeleton=COCO17, **changes):
    whole = load().systems[name]
    changes = {"input_size": (WIDTH, HEIGHT), **BUDGET, **changes}
    return create(name, type(whole).model_validate({**whole.model_dump(), **changes}), skeleton)


@torch.no_grad()
def calm(model):
    """Statistics and offsets as after a training: without them numbers grow through fifty layers."""
    g = torch.Generator().manual_seed(5)
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            tensor.fill_(8.0)
        if key.endswith("box_predictor.bbox_pred.weight"):
            tensor.mul_(0.1)
        if key.endswith(("cls_score.weight", "head.cls_logits.weight", "kps_score_lowres.weight")):
            tensor.copy_(0.2 * torch.randn(tensor.shape, generator=g))
    return model.eval()


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["keypoint_rcnn", "person_detector"])
@torch.no_grad()
def test_loaded_weights_find_what_torchvision_finds(name, pictures):
    torch.manual_seed(0)
    if name == "keypoint_rcnn":
        theirs = calm(keypointrcnn_resnet50_fpn(num_keypoints=17, **THEIRS))
    else:
        theirs = calm(fasterrcnn_resnet50_fpn(num_classes=2, **THEIRS))
    ours = system(name)
    ours.load_official(theirs.state_dict(), eps=1e-5)
    ours.network.eval()
    expected = theirs(list(pictures))
    found = ours.people(ours.network(theirs.transform(list(pictures))[0].tensors))
    for number, wanted in enumerate(expected):
        rows = found.image == number
        assert int(rows.sum()) == len(wanted["boxes"]) > 0
        torch.testing.assert_close(found.boxes[rows], wanted["boxes"], rtol=0, atol=1e-4)
        torch.testing.assert_close(found.scores[rows], wanted["scores"], rtol=0, atol=1e-4)
        if name == "keypoint_rcnn":
            torch.testing.assert_close(found.keypoints[rows], wanted["keypoints"][..., :2], rtol=0, atol=1e-4)
            torch.testing.assert_close(found.logits[rows], wanted["keypoints_scores"], rtol=0, atol=1e-4)


def test_networks_have_the_releases_keys_shapes_and_sizes():
    with torch.device("meta"):
        for name, theirs, parameters in (
            ("keypoint_rcnn", keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None), 59_190_378),
            ("person_detector", fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2), None),
        ):
            ours = system(name).network
            assert {k: v.shape for k, v in ours.state_dict().items()} == {
                k: v.shape for k, v in theirs.state_dict().items()
            }
            assert parameters in (None, sum(p.numel() for p in ours.parameters()))


def test_a_release_with_91_classes_old_names_and_frozen_statistics_loads_as_person_against_background():
    torch.manual_seed(0)
    ours = system("person_detector")
    state = {}
    for key, tensor in ours.network.state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue
        if ".box_predictor." in key:
            tensor = torch.arange(91 * (len(tensor) // 2) * tensor[0].numel()).float().reshape(-1, *tensor.shape[1:])
        state[key.replace("conv.0.0", "conv")] = tensor.clone() + 0.5 * key.endswith("running_var")
    ours.load_official(state)
    loaded = ours.network.state_dict()
    for part, rows in (("cls_score", 2), ("bbox_pred", 8)):
        key = f"roi_heads.box_predictor.{part}.weight"
        assert torch.equal(loaded[key], state[key][:rows])
    variance = loaded["backbone.body.bn1.running_var"] + ours.network.backbone.body.bn1.eps
    torch.testing.assert_close(variance, state["backbone.body.bn1.running_var"])
    assert torch.equal(loaded["rpn.head.conv.0.0.bias"], state["rpn.head.conv.bias"])


def test_another_joint_count_is_refused_with_both_shapes():
    with torch.device("meta"):
        state = system("keypoint_rcnn").network.state_dict()
        with pytest.raises(TrainingError, match=r"release's state_dict.*kps_score_lowres.weight is \(512, 17, 4, 4\)"):
            system("keypoint_rcnn", skeleton=LSP14).load_official(state)


def test_pooled_features_are_torchvisions():
    g = torch.Generator().manual_seed(1)
    levels = OrderedDict(
        (str(i), torch.randn(2, 5, HEIGHT // s, WIDTH // s, generator=g)) for i, s in enumerate((4, 8, 16, 32))
    )
    low = torch.rand(40, 2, generator=g) * 60
    boxes = torch.cat([low, low + 1 + torch.rand(40, 2, generator=g) * torch.tensor([WIDTH, HEIGHT])], dim=1)
    boxes[:3] = torch.tensor([[0.0, 0, 500, 480], [0, 0, 224, 224], [0, 0, 112, 112]])
    split = [boxes[:25], boxes[25:]]
    theirs = MultiScaleRoIAlign(list(levels), 7, 2)(levels, split, [(HEIGHT, WIDTH)] * 2)
    torch.testing.assert_close(pool(levels, split, 7, (HEIGHT, WIDTH)), theirs, rtol=0, atol=0)


def test_keypoint_loss_is_torchvisions_and_a_hand_written_cross_entropy():
    g = torch.Generator().manual_seed(1)
    maps = torch.randn(6, 3, 56, 56, generator=g)
    low = torch.rand(6, 2, generator=g) * 50
    boxes = torch.cat([low, low + 20 + torch.rand(6, 2, generator=g) * 60], dim=1)
    keypoints = torch.rand(6, 3, 2, generator=g) * 100
    keypoints[0, 0] = boxes[0, 2:]  # the far corner belongs to the last cell
    labelled = torch.rand(6, 3, generator=g) > 0.3
    labelled[0, 0] = True
    total, count = 0.0, 0
    for box, logits, points, known in zip(boxes, maps.double(), keypoints, labelled, strict=True):
        for joint in range(3):
            share = (points[joint] - box[:2]) / (box[2:] - box[:2])
            if known[joint] and ((share >= 0) & (share <= 1)).all():
                column, row = (min(55, int(56 * s)) for s in share.tolist())
                total += float(logits[joint].flatten().logsumexp(0) - logits[joint, row, column])
                count += 1
    assert 3 < count < 18
    got = keypoint_loss(maps, boxes, torch.where(labelled[..., None], keypoints, torch.nan), labelled)
    assert float(got) == pytest.approx(total / count, rel=1e-5)
    triples = torch.cat([keypoints, labelled[..., None].float()], dim=2)
    theirs = keypointrcnn_loss(maps, [boxes], [triples], [torch.arange(6)])
    torch.testing.assert_close(got, theirs)


def test_peaks_of_all_boxes_together_are_those_one_by_one():
    g = torch.Generator().manual_seed(4)
    maps = torch.nn.functional.interpolate(torch.randn(5, 4, 14, 14, generator=g), scale_factor=4, mode="bicubic")
    low = torch.rand(5, 2, generator=g) * 30
    boxes = torch.cat([low, low + torch.tensor([[0.3, 4.0], [20.5, 30], [56, 56], [90, 64.2], [97, 61]])], dim=1)
    together = peaks(maps, boxes, (WIDTH, HEIGHT))
    for i, (wide, high) in enumerate([(1, 4), (21, 30), (56, 56), (90, 65), (97, 61)]):
        alone = torch.nn.functional.interpolate(maps[i : i + 1], size=(high, wide), mode="bicubic")[0].flatten(1)
        value, index = alone.max(dim=1)
        place = torch.stack([index % wide, index // wide], dim=1) + 0.5
        extent = (boxes[i, 2:] - boxes[i, :2]).clamp(min=1)
        torch.testing.assert_close(together[0][i], place * extent / torch.tensor([wide, high]) + low[i])
        torch.testing.assert_close(together[1][i], value)


def test_confidences_do_not_hang_on_the_last_bits_of_a_box():
    """28 pixels to 56 cells: every peak lies on the border of two cells, whatever rounding says."""
    torch.manual_seed(20)
    maps, box = 3 * torch.randn(1, 300, 56, 56), torch.tensor([[13.7, 21.3, 41.2, 48.9]])
    points, _ = peaks(maps, box, (64, 64))
    expected = confidences(maps, box, points)
    for off in (-1e-5, 1e-5):
        torch.testing.assert_close(confidences(maps, box, points + off), expected, rtol=0, atol=0)
