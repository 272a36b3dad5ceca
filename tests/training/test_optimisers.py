"""Steps, schedules, averages and accumulation against arithmetic done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from pose.config import OptimiserParams, ScheduleParams
from pose.config_loading import load
from pose.training import optimisers
from pose.training.ema import Ema


def weight_and_bias() -> tuple[nn.Linear, np.ndarray, np.ndarray]:
    layer = nn.Linear(3, 2)
    return layer, layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()


def give_gradients(layer: nn.Linear, value: float) -> None:
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, value)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_momentum_and_decay(nesterov):
    layer, weight, bias = weight_and_bias()
    params = OptimiserParams(kind="sgd", lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.01)
    optimiser = optimisers.build(params, layer.parameters(), lr_factor=0.5)
    speed_w, speed_b = 0.0, 0.0
    for gradient in (0.3, -0.2):
        give_gradients(layer, gradient)
        optimiser.step()
        whole_w, whole_b = gradient + 0.01 * weight, gradient + 0.01 * bias
        speed_w, speed_b = 0.9 * speed_w + whole_w, 0.9 * speed_b + whole_b
        # Nesterov's goes as far as the next step would take it with the same gradient.
        step_w, step_b = (whole_w + 0.9 * speed_w, whole_b + 0.9 * speed_b) if nesterov else (speed_w, speed_b)
        weight, bias = weight - 0.05 * step_w, bias - 0.05 * step_b
    np.testing.assert_allclose(layer.weight.detach().numpy(), weight, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(layer.bias.detach().numpy(), bias, rtol=1e-5, atol=1e-7)


def test_adagrad_divides_by_the_root_of_all_squares_so_far():
    layer, weight, bias = weight_and_bias()
    params = OptimiserParams(kind="adagrad", lr=0.02, weight_decay=0.01)
    optimiser = optimisers.build(params, layer.parameters(), lr_factor=0.5)
    squares_w, squares_b = np.zeros_like(weight), np.zeros_like(bias)
    for gradient in (0.3, -0.2, 0.1):
        give_gradients(layer, gradient)
        optimiser.step()
        whole_w, whole_b = gradient + 0.01 * weight, gradient + 0.01 * bias
        squares_w, squares_b = squares_w + whole_w**2, squares_b + whole_b**2
        weight = weight - 0.01 * whole_w / (np.sqrt(squares_w) + 1e-10)
        bias = bias - 0.01 * whole_b / (np.sqrt(squares_b) + 1e-10)
    np.testing.assert_allclose(layer.weight.detach().numpy(), weight, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(layer.bias.detach().numpy(), bias, rtol=1e-5, atol=1e-7)


def test_adamw_decays_kernels_but_not_biases():
    layer, weight, bias = weight_and_bias()
    params = OptimiserParams(kind="adamw", lr=0.01, weight_decay=0.1)
    optimiser = optimisers.build(params, layer.parameters(), lr_factor=1.0)
    mean = square = 0.0
    for t, gradient in enumerate((0.3, -0.2), start=1):
        give_gradients(layer, gradient)
        optimiser.step()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        move = 0.01 * (mean / (1 - 0.9**t)) / (math.sqrt(square / (1 - 0.999**t)) + 1e-8)
        weight, bias = weight * (1 - 0.01 * 0.1) - move, bias - move
    np.testing.assert_allclose(layer.weight.detach().numpy(), weight, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(layer.bias.detach().numpy(), bias, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (ScheduleParams(kind="constant"), [1.0] * 8),
        (ScheduleParams(kind="constant", warmup_steps=3), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (ScheduleParams(kind="step", milestones=[0.5, 0.75], gamma=0.1), [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        (ScheduleParams(kind="step", milestones=[0.25, 0.5], gamma=[0.1, 0.5]), [1, 1, 0.1, 0.1, *[0.05] * 4]),
        (
            ScheduleParams(kind="cosine", warmup_steps=4),
            [0.2, 0.4, 0.6, 0.8, 1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)],
        ),
        (
            ScheduleParams(kind="cosine", warmup_steps=4, final=0.2),
            [0.2, 0.4, 0.6, 0.8, 1.0, 0.6 + 0.8 * math.sqrt(0.125), 0.6, 0.6 - 0.8 * math.sqrt(0.125)],
        ),
    ],
)
def test_schedules(params, expected):
    np.testing.assert_allclose([optimisers.lr_factor(params, step, 8) for step in range(8)], expected, atol=1e-12)


def test_a_plateau_lowers_the_rate_after_its_patience_and_rests():
    """Falls after the third epoch in a row without improvement; two that follow do not count."""
    params = ScheduleParams(kind="plateau", gamma=0.5, patience=2, cooldown=2)
    reached = [3.0, 2.0, 2.0, 2.5, 2.1, 2.1, 2.1, 2.1, 2.1, 2.1, 1.0, 1.0]
    factors = [optimisers.lr_factor(params, 0, 8, reached[:epochs]) for epochs in range(len(reached) + 1)]
    assert factors == [1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


@pytest.mark.parametrize(("patience", "cooldown", "sign"), [(5, 3, 1), (5, 3, -1), (0, 0, 1), (1, 4, 1), (3, 1, -1)])
def test_a_plateau_counts_as_torch_does(patience, cooldown, sign):
    """Also where the values are negated and more was better."""
    params = ScheduleParams(kind="plateau", gamma=0.8, patience=patience, cooldown=cooldown)
    rng = np.random.default_rng(patience)
    noise = rng.normal(0, 0.05, 60) * (rng.random(60) < 0.7)
    reached = (np.maximum(0.2, np.exp(-np.arange(60) / 15) + noise) * np.linspace(1, 0.9999, 60)).tolist()
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    torchs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, "min" if sign == 1 else "max", 0.8, patience, cooldown=cooldown
    )
    if sign == -1:
        reached = [1 - value for value in reached]
    for epoch, value in enumerate(reached, start=1):
        torchs.step(value)
        factor = optimisers.lr_factor(params, 0, 8, [sign * value for value in reached[:epoch]])
        assert factor == pytest.approx(optimiser.param_groups[0]["lr"], abs=1e-12)
    assert factor < 1


def test_papers_rates_are_theirs():
    systems = load().systems
    deepcut, kapao, openpose = (systems[name].recipes["paper"] for name in ("deepcut", "kapao", "openpose"))
    # Of DeeperCut's 1.8 million steps the first 10,000 warm up.
    steps = [20_000, 500_000, 800_000, 1_100_000, 1_600_000]
    rates = [deepcut.optimiser.lr * optimisers.lr_factor(deepcut.schedule, step, 1_800_000) for step in steps]
    assert rates == pytest.approx([0.02, 0.002, 0.0005, 0.0002, 0.00005])
    rates = [kapao.optimiser.lr * optimisers.lr_factor(kapao.schedule, step, 9_500) for step in (1_500, 5_500, 9_500)]
    assert rates == pytest.approx([0.01, 0.006, 0.002])
    rates = [optimisers.lr_factor(openpose.schedule, 600, 1_000, [1.0] * epochs) for epochs in (0, 6, 7, 15, 16)]
    assert rates == pytest.approx([1, 1, 0.8, 0.8, 0.64])
    for recipe in (kapao, openpose):
        optimiser = optimisers.build(recipe.optimiser, nn.Linear(3, 2).parameters(), lr_factor=1.0)
        assert isinstance(optimiser, torch.optim.SGD)
        assert optimiser.defaults["nesterov"]


def test_what_older_trainings_recorded_is_still_read():
    """Their optimisers and schedules have none of the keys that came later."""
    optimiser = OptimiserParams.model_validate({"kind": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0})
    schedule = ScheduleParams.model_validate({"kind": "cosine", "warmup_steps": 0, "milestones": [], "gamma": 0.1})
    assert not optimiser.nesterov
    assert schedule.final == 0.0


def test_what_cannot_be_stepped_is_refused():
    with pytest.raises(ValueError, match="gamma has 1 values for 2 milestones; expected one for each"):
        ScheduleParams(kind="step", milestones=[0.5, 0.75], gamma=[0.1])
    with pytest.raises(ValueError, match="nesterov is true with momentum 0"):
        OptimiserParams(kind="sgd", lr=0.1, momentum=0.0, nesterov=True)


@pytest.mark.parametrize("gamma", [1.0, 2.0, []])
def test_a_plateau_that_would_not_lower_the_rate_is_refused(gamma):
    with pytest.raises(ValueError, match=r"gamma of a plateau is .*; expected one number below 1"):
        ScheduleParams(kind="plateau", gamma=gamma)


def test_clipping_returns_the_norm_before():
    layer, *_ = weight_and_bias()
    give_gradients(layer, 2.0)
    norm = optimisers.clip(list(layer.parameters()), 1.0)
    assert norm.item() == pytest.approx(2 * math.sqrt(8))
    clipped = torch.cat([p.grad.flatten() for p in layer.parameters()])
    assert clipped.norm().item() == pytest.approx(1.0, rel=1e-4)


def test_average_of_weights_and_counters():
    network = nn.BatchNorm1d(1)
    ema = Ema(network, 0.5)
    average, live = 1.0, [3.0, 5.0, -1.0, 0.5]
    for t, value in enumerate(live, start=1):
        with torch.no_grad():
            network.weight.fill_(value)
            network.num_batches_tracked.fill_(t)
        ema.update()
        decay = min(0.5, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * value
    with ema.applied():
        assert network.weight.item() == pytest.approx(average, rel=1e-6)
        assert network.num_batches_tracked.item() == 4
    assert network.weight.item() == 0.5
