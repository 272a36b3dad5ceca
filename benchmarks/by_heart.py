"""Whether a whole-scene system can learn: eight drawn scenes by heart, in OKS AP on the same scenes.

    python -m benchmarks.by_heart openpose [--steps 400] [--profile crowd-cpu]

The system as the profile has it, its phases one after the other, the scenes unaugmented and all in every step. On one
thread; JSON on stdout. It says that network, targets, loss and decoding fit together, nothing of other pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pose.config import PhaseParams, SyntheticParams
from pose.config_loading import load
from pose.data import scenes, synthetic
from pose.data.batch import SceneBatch
from pose.metrics import oks
from pose.progress import say
from pose.skeleton import LSP14, Skeleton
from pose.systems import create
from pose.systems.base import System

SCENES, PEOPLE, WARM_UP = 8, (2, 3), 20


def drawn(side: int, skeleton: Skeleton, seed: int) -> tuple[SceneBatch, dict[str, Any]]:
    """The scenes as a batch that no system has prepared yet, and their truth in COCO's format."""
    params = SyntheticParams(skeleton=skeleton.name, images=SCENES, width=side, height=side, people=PEOPLE, seed=seed)  # type: ignore[arg-type]
    pictures, found = zip(*(synthetic.draw(params, number) for number in range(SCENES)), strict=True)
    batch = scenes.unlabelled(list(pictures), list(range(SCENES)), side, skeleton)
    slots = max(map(len, found))
    people = torch.zeros(SCENES, slots, dtype=torch.bool)
    joints = torch.zeros(SCENES, slots, skeleton.size, 3)
    boxes, areas = torch.zeros(SCENES, slots, 4), torch.zeros(SCENES, slots)
    annotations: list[dict[str, Any]] = []
    for image, everyone in enumerate(found):
        for slot, person in enumerate(everyone):
            people[image, slot] = True
            joints[image, slot] = torch.tensor(person["keypoints"]).reshape(-1, 3)
            x, y, width, height = person["bbox"]
            boxes[image, slot] = torch.tensor([x, y, x + width, y + height])
            areas[image, slot] = person["area"]
            visible = sum(v > 0 for v in person["keypoints"][2::3])
            common = {"image_id": image, "id": len(annotations) + 1, "category_id": 1, "iscrowd": 0}
            annotations.append({**person, **common, "num_keypoints": visible})
    images = [{"id": number, "width": side, "height": side} for number in range(SCENES)]
    truth = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    labelled = joints[..., 2] > 0
    return replace(
        batch, people=people, keypoints=joints[..., :2], labelled=labelled, presence=labelled.float(), boxes=boxes,
        areas=areas,
    ), truth  # fmt: skip


def learn(system: System, raw: SceneBatch, phase: PhaseParams, steps: int, lr: float) -> None:
    """One phase, the rate rising at first and falling to nothing."""
    network = system.network.eval().requires_grad_(False)
    system.begin_phase(phase, lambda: iter([raw]))
    for name in phase.train:
        for module in system.groups[name]:
            module.train().requires_grad_(True)
    batch = system.prepare(raw)
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=lr)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * min((step + 1) / WARM_UP, (1 + math.cos(math.pi * step / steps)) / 2)
        terms = system.loss(system.forward(network, batch), batch)
        loss: Tensor = torch.stack([weight * terms[name] for name, weight in phase.losses.items()]).sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimiser.step()
        if step % 50 == 49:
            say(f"{phase.name}: step {step + 1} of {steps}, loss {loss.detach():.4f}")
    network.eval()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system")
    parser.add_argument("--profile", default="crowd-cpu")
    parser.add_argument("--steps", type=int, default=400, help="of the first phase; later ones take a fifth")
    parser.add_argument("--lr", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=11)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    params = load(arguments.profile).systems[arguments.system]
    system = create(arguments.system, params, LSP14)
    raw, truth = drawn(max(params.input_size), LSP14, arguments.seed)
    started = time.process_time()
    for number, phase in enumerate(params.chosen.phases):
        steps = arguments.steps if number == 0 else arguments.steps // 5
        learn(system, raw, phase, steps, arguments.lr * phase.lr_factor)
    if system.fits:
        system.fit(lambda: iter([raw]), lambda found: oks.evaluate(found, truth, LSP14).metrics["ap"])
    seconds = time.process_time() - started
    with torch.no_grad():
        batch = system.prepare(raw)
        people = system.decode(system.forward(system.network, batch), batch)
    found = oks.evaluate(people, truth, LSP14).metrics
    facts = {"system": arguments.system, "steps": arguments.steps, "cpu_seconds": round(seconds, 1)}
    counts = {"people": len(truth["annotations"]), "found": len(people)}
    print(json.dumps(facts | counts | {name: round(float(value), 4) for name, value in found.items()}))


if __name__ == "__main__":
    main()
