import pytest
import torch
import torchvision

from pose.errors import TrainingError
from pose.layers.vgg import VGG16_BLOCKS, VGG19_BLOCKS, load_imagenet_features, vgg_features

CHANNELS = (64, 128, 256, 512, 512)
CASES = [
    ("vgg16_bn", VGG16_BLOCKS, True),
    ("vgg19", VGG19_BLOCKS, False),
    ("vgg19_bn", VGG19_BLOCKS, True),
]


@pytest.fixture
def reference(request: pytest.FixtureRequest) -> torch.nn.Module:
    """torchvision's features and a classifier of its own; the 120 million weights of the real one say nothing here."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = torchvision.models.get_model(request.param, weights=None, init_weights=False)
    model.classifier = torch.nn.Linear(1, 1)
    model.to_empty(device="cpu")
    for module in model.features:
        if isinstance(module, torch.nn.Conv2d | torch.nn.BatchNorm2d):
            module.reset_parameters()
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize(("reference", "blocks", "batch_norm"), CASES, indirect=["reference"])
def test_agrees_with_torchvision_under_its_weights(reference, blocks, batch_norm):
    ours = vgg_features(blocks, CHANNELS, batch_norm=batch_norm).eval()
    theirs = reference.features.state_dict()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.items()}
    load_imagenet_features(ours, reference.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = reference.features(images)
        assert wanted.abs().max() > 0
        torch.testing.assert_close(ours(images), wanted, rtol=0, atol=0)


@pytest.mark.parametrize(("reference", "blocks", "batch_norm"), CASES[:1], indirect=["reference"])
def test_old_releases_without_step_counters_load(reference, blocks, batch_norm):
    state = {k: v for k, v in reference.state_dict().items() if not k.endswith("num_batches_tracked")}
    ours = vgg_features(blocks, CHANNELS, batch_norm=batch_norm)
    load_imagenet_features(ours, state)
    torch.testing.assert_close(ours[1].running_var, reference.features[1].running_var, rtol=0, atol=0)


def test_weights_of_another_vgg_are_refused_and_change_nothing():
    ours = vgg_features(VGG19_BLOCKS, (4, 4, 4, 4, 4), batch_norm=False)
    before = ours[0].weight.clone()
    state = {f"features.{k}": v + 1 for k, v in ours.state_dict().items()}
    state["features.0.weight"] = torch.zeros(5, 3, 3, 3)
    del state["features.2.bias"]
    state["features.99.bias"] = torch.zeros(1)
    with pytest.raises(TrainingError) as error:
        load_imagenet_features(ours, state)
    for part in ("missing: 2.bias", "unexpected: 99.bias", "0.weight is (5, 3, 3, 3), expected (4, 3, 3, 3)"):
        assert part in str(error.value)
    assert torch.equal(ours[0].weight, before)
