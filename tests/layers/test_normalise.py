import numpy as np
import torch

from pose.layers.normalise import Normalise


def test_equals_torchvision_for_bytes_and_floats():
    from torchvision.transforms.v2.functional import normalize

    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 8, 9), dtype=np.uint8))
    expected = normalize(images / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    torch.testing.assert_close(Normalise()(images), expected, rtol=0, atol=2e-6)
    assert torch.equal(Normalise()(images), Normalise()(images.float()))


def test_black_and_white_are_the_ends_of_the_range():
    normalise = Normalise()
    ends = normalise(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 1, 1))
    torch.testing.assert_close(ends[:1], normalise.black)
    torch.testing.assert_close(ends[1:], normalise.white)


def test_adds_nothing_to_a_network_s_weights():
    assert Normalise().state_dict() == {}
    assert list(Normalise().parameters()) == []


def test_the_mean_colour_is_zero_in_double_too():
    grey = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
    assert Normalise()(grey.double()).dtype == torch.float32
    assert Normalise()(grey).abs().max() < 1e-6
