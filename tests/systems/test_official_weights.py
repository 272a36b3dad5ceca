"""ImageNet trunks from torchvision, where a system has one."""

import pytest
import torch
import torchvision

from pose.config_loading import load
from pose.errors import TrainingError
from pose.skeleton import LSP14
from pose.systems import create


@pytest.mark.parametrize(("name", "release", "tensors"), [("vgg19", "vgg19", 32), ("vgg16_regressor", "vgg16_bn", 91)])
def test_trunk_has_the_release_s_keys_and_shapes(name, release, tensors):
    with torch.device("meta"):
        ours = create(name, load().systems[name], LSP14).network.features.state_dict()
        theirs = torchvision.models.get_model(release, weights=None).features.state_dict()
    assert len(ours) == tensors
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize(("name", "release"), [("vgg19", "vgg19"), ("vgg16_regressor", "vgg16_bn")])
def test_loaded_trunk_answers_as_the_release_does(tiny, name, release):
    torch.manual_seed(1)
    theirs = torchvision.models.get_model(release, weights=None, init_weights=False, num_classes=2)
    theirs = theirs.eval()
    system = tiny(name, channels=[64, 128, 256, 512, 512])
    system.load_trunk(theirs.state_dict())
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        wanted = theirs.features(images)
        torch.testing.assert_close(system.network.eval().features(images), wanted, rtol=0, atol=0)


def test_narrow_networks_refuse_imagenet_weights(tiny):
    system = tiny("vgg19")
    state = {f"features.{k}": torch.zeros(1) for k in system.network.features.state_dict()}
    with pytest.raises(TrainingError, match=r"wrong shape: 0\.weight is \(1,\), expected \(8, 3, 3, 3\)"):
        system.load_trunk(state)
