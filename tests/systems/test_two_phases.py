"""Classification first; then the coordinate head on a frozen rest, as the four LSP regressors' source has it."""

import pytest
import torch

from pose.systems import SYSTEMS
from pose.systems.two_headed import TwoHeaded

NAMES = [name for name, system in SYSTEMS.items() if issubclass(system, TwoHeaded)]


def train(system, batch, groups: list[str], term: str, steps: int) -> None:
    """A few steps on these groups; the others frozen and in eval mode, as the training loop has them."""
    system.network.train()
    for name, modules in system.groups.items():
        for module in modules:
            module.train(name in groups).requires_grad_(name in groups)
    moving = [p for p in system.network.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(moving, lr=0.01, momentum=0.9, weight_decay=0.0005)
    for _ in range(steps):
        loss = system.loss(system.network(batch.images), batch)[term]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_second_phase_leaves_presence_bit_identical(tiny, random_batch, name, batch_norm):
    system = tiny(name, dropout=0.5, batch_norm=batch_norm)
    batch = random_batch(system)
    train(system, batch, ["trunk", "presence"], "presence", steps=2)
    with torch.no_grad():
        before = system.network.eval()(batch.images)
        loss_before = system.loss(before, batch)["coordinates"].item()
    train(system, batch, ["coordinates"], "coordinates", steps=60)
    with torch.no_grad():
        after = system.network.eval()(batch.images)
    assert torch.equal(after["presence"], before["presence"])
    assert system.loss(after, batch)["coordinates"].item() < loss_before


@pytest.mark.parametrize("name", NAMES)
def test_first_phase_leaves_the_coordinate_head_alone(tiny, random_batch, name):
    system = tiny(name)
    before = [p.clone() for p in system.network.coordinates.parameters()]
    batch = random_batch(system)
    train(system, batch, ["trunk", "presence"], "presence", steps=2)
    assert all(torch.equal(a, b) for a, b in zip(before, system.network.coordinates.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_each_term_reaches_its_own_head_and_the_trunk(tiny, random_batch, name):
    system = tiny(name)
    batch = random_batch(system)
    for term, other in (("presence", "coordinates"), ("coordinates", "presence")):
        system.network.zero_grad()
        system.loss(system.network(batch.images), batch)[term].backward()
        assert all(
            p.grad.any() for module in (*system.groups["trunk"], *system.groups[term]) for p in module.parameters()
        )
        assert all(p.grad is None for module in system.groups[other] for p in module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_presence_starts_at_each_joints_share_in_training(tiny, random_batch, name):
    system = tiny(name)
    batches = [random_batch(system) for _ in range(3)]
    first, second = system.params.chosen.phases
    before = {key: value.clone() for key, value in system.network.state_dict().items()}
    system.begin_phase(first, lambda: iter(batches))
    presence = torch.cat([batch.presence for batch in batches])
    answered = torch.sigmoid(system.network.eval()(batches[0].images)["presence"])
    shares = (presence.sum(dim=0) + 0.5) / (len(presence) + 1)
    assert torch.allclose(answered, shares.expand_as(answered), atol=0.05)
    changed = [key for key, value in system.network.state_dict().items() if not torch.equal(value, before[key])]
    assert len(changed) == 1
    learnt = {key: value.clone() for key, value in system.network.state_dict().items()}
    system.begin_phase(second, lambda: iter(batches[:1]))
    system.begin_phase(first, None)  # resumed: what was learnt stays
    assert all(torch.equal(value, learnt[key]) for key, value in system.network.state_dict().items())
