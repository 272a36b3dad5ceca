"""Whether a system can learn: eight drawn scenes by heart, in OKS AP on the same scenes; a detector in box AP.

    python -m benchmarks.by_heart openpose [--steps 400] [--lr 0.003] [--profile crowd-cpu]

The system as the profile has it, its phases one after the other, everything unaugmented and all of it in every step. A
person view sees everyone of the scenes in their true box, without dropout and without a mirrored image when it is
measured. On one thread; JSON on stdout. It says that network, targets, loss and decoding fit together, nothing of other
pictures.

Of two people whose boxes overlap by more than an R-CNN's `overlap` it reports one at best: at 128 px that is two pairs
among seed 11's 21 people, none among seed 14's 21.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pose.config import CropParams, EvaluationParams, PhaseParams, SyntheticParams, SystemParams
from pose.config_loading import load
from pose.data import crops, scenes, synthetic, views
from pose.data.batch import Batch, SceneBatch
from pose.evaluate_oks import box_figures
from pose.metrics import oks
from pose.metrics.truth import read
from pose.people import People
from pose.progress import say
from pose.skeleton import LSP14, Skeleton
from pose.systems import SYSTEMS, create
from pose.systems.base import System

SCENES, PEOPLE, WARM_UP = 8, (2, 3), 20
CROP = CropParams(view="person", size=160, margin=2.0)
"""As the dataset `crowd` stores people."""
SIDE = 256
"""px of a scene that people are cut from."""


def drawn(side: int, skeleton: Skeleton, seed: int) -> tuple[SceneBatch, dict[str, Any]]:
    """The scenes as a batch that no system has prepared yet, and their truth in COCO's format."""
    params = SyntheticParams(skeleton=skeleton.name, images=SCENES, width=side, height=side, people=PEOPLE, seed=seed)
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


def cut(raw: SceneBatch) -> Batch:
    """Everyone of the drawn scenes in the crop around their true box, without the JPEG between."""
    image, slot = raw.people.nonzero(as_tuple=True)
    boxes, which = raw.boxes[image, slot], image.tolist()
    pictures = [Image.fromarray(scene.permute(1, 2, 0).numpy()) for scene in raw.images]
    affines = [crops.crop_affine(CROP, box, pictures[n].size) for n, box in zip(which, boxes.numpy(), strict=True)]
    cuts = [crops.extract(pictures[n], affine, CROP.size) for n, affine in zip(which, affines, strict=True)]
    to_crop = torch.from_numpy(np.stack(affines))
    return Batch(
        images=torch.from_numpy(np.stack([np.asarray(one) for one in cuts])).permute(0, 3, 1, 2),
        keypoints=views.apply(to_crop, raw.keypoints[image, slot]),
        labelled=raw.labelled[image, slot],
        presence=raw.presence[image, slot],
        to_original=views.inverse(to_crop).float(),
        sample=torch.arange(len(image)),
        image_ids=raw.image_ids[image],
        image_sizes=raw.image_sizes[image],
        boxes=boxes,
        view=CROP.view,
        margin=CROP.margin,
    )


def bare(params: SystemParams) -> SystemParams:
    """The same without what stands against learning by heart: mirrored images were never seen, dropout forgets."""
    off = {name: value for name, value in (("flip_test", False), ("dropout", 0.0)) if hasattr(params, name)}
    # Nobody's box is moved, so AlphaPose needs no detector to move them as.
    given = params.with_boxes(None) if params.awaits else params
    return given.model_copy(update=off)


def measured(
    system: System, people: People, truth: dict[str, Any], evaluation: EvaluationParams
) -> tuple[int, dict[str, float]]:
    """How many were found, and the figures; as pose.evaluate has it, in true boxes for a person view."""
    if not system.finds_joints:
        return len(people), box_figures(people, read(truth, system.skeleton), evaluation)[0]
    if system.view == "person":
        boxed = replace(people, person_scores=np.ones(len(people), np.float32))
        people = system.settling.people(boxed, system.skeleton)
    return len(people), oks.evaluate(people, truth, system.skeleton).metrics


def learn(system: System, raw: Batch | SceneBatch, phase: PhaseParams, steps: int, lr: float) -> None:
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
    params = load(arguments.profile)
    block = params.systems[arguments.system]
    by_person = SYSTEMS[arguments.system].view == "person"
    system = create(arguments.system, bare(block) if by_person else block, LSP14)
    scene, truth = drawn(SIDE if by_person else max(block.input_size), LSP14, arguments.seed)
    raw = cut(scene) if by_person else scene
    started = time.process_time()
    for number, phase in enumerate(system.params.chosen.phases):
        steps = arguments.steps if number == 0 else arguments.steps // 5
        learn(system, raw, phase, steps, arguments.lr * phase.lr_factor)
    if system.fits:
        system.fit(lambda: iter([raw]), lambda found: oks.evaluate(found, truth, LSP14).metrics["ap"])
    seconds = time.process_time() - started
    with torch.no_grad():
        batch = system.prepare(raw)
        people = system.decode(system.forward(system.network, batch), batch)
    found, figures = measured(system, people, truth, params.evaluation)
    facts = {"system": arguments.system, "steps": arguments.steps, "lr": arguments.lr, "cpu_seconds": round(seconds, 1)}
    counts = {"people": len(truth["annotations"]), "found": found}
    print(json.dumps(facts | counts | {name: round(float(value), 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
