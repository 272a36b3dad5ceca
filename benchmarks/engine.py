"""The training engine against a bare hand-written loop of the same network, in one process and in a Ray Train worker.

    python -m benchmarks.engine [--system baseline1] [--recipe paper] [--no-ray] [--json out.json]

Both loops take turns in the same process, a chunk of steps each, on the same data through the same loader; the order
within a pair alternates. What is compared is the steady step time: start-up, validation and checkpoints are not in it.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from pose.config import CropParams
from pose.config_loading import load
from pose.data.batch import Batch
from pose.data.shards import Row, write_shards
from pose.skeleton import LSP14
from pose.systems import create
from pose.training import settings
from pose.training.distributed import World
from pose.training.loop import train_steps
from pose.training.sampling import rank_order
from pose.training.spec import TrainingSpec
from pose.training.stage import Stage
from pose.training.state import Run

TARGETS = {"one process": 1.03, "Ray Train, one worker": 1.05}


class BareLoop:
    """What one would write without an engine: forward, loss, backward, update."""

    def __init__(self, run: Run, stage: Stage) -> None:
        self.system = create(run.spec.system, run.spec.system_params, run.system.skeleton)
        self.system.network.load_state_dict(run.network.state_dict())
        self.device, self.phase, self.recipe = run.world.device, stage.phase, run.recipe
        self.network = self.system.network.to(self.device, memory_format=torch.channels_last)
        self.network.train()
        o = self.recipe.optimiser
        kind: Any = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[o.kind]
        extra = {"momentum": o.momentum} if o.kind == "sgd" else {}
        self.optimiser = kind(self.network.parameters(), lr=o.lr, weight_decay=o.weight_decay, fused=True, **extra)
        self.average = [p.detach().clone() for p in self.network.parameters()]

    def steps(self, batches: Iterator[Batch]) -> None:
        """One update per batch."""
        for batch in batches:
            batch = self.system.prepare(batch.to(self.device))
            images = batch.images.contiguous(memory_format=torch.channels_last)
            terms = self.system.loss(self.network(images), batch)
            loss = sum(weight * terms[name] for name, weight in self.phase.losses.items())
            loss.backward()
            if self.recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)
            self.optimiser.step()
            self.optimiser.zero_grad()
            if self.recipe.ema_decay is not None:
                weights = [p.detach() for p in self.network.parameters()]
                torch._foreach_lerp_(self.average, weights, 1 - self.recipe.ema_decay)


def compare(spec: TrainingSpec, chunks: int, steps: int) -> dict[str, Any]:
    """Seconds per step of both loops, chunk by chunk, in this process."""
    with settings.applied(spec.params.training, World()):
        run = Run(spec, World())
        stage = run.open_stage()
        bare = BareLoop(run, stage)
        feeds = {"engine": endless(run), "bare": endless(run)}
        loops = {
            "engine": lambda batches: train_steps(run, stage, batches, lambda record, path: None),
            "bare": bare.steps,
        }
        seconds: dict[str, list[float]] = {"engine": [], "bare": []}
        for chunk in range(chunks + 1):
            for name in sorted(loops, reverse=chunk % 2 == 1):
                start = time.perf_counter()
                loops[name](islice(feeds[name], steps))
                if chunk > 0:  # the first pair warms caches and allocators
                    seconds[name].append((time.perf_counter() - start) / steps)
        threads = torch.get_num_threads()
    engine, plain = statistics.median(seconds["engine"]), statistics.median(seconds["bare"])
    pairs = [e / b for e, b in zip(seconds["engine"], seconds["bare"], strict=True)]
    return {
        "engine_ms": 1000 * engine,
        "bare_ms": 1000 * plain,
        "ratio_of_medians": engine / plain,
        "median_ratio": statistics.median(pairs),
        "quartiles": statistics.quantiles(pairs, n=4)[::2],
        "threads": threads,
    }


def endless(run: Run) -> Iterator[Batch]:
    """The first epoch's batches, again and again."""
    seed = run.spec.params.seed
    order, rows = rank_order(len(run.train_loader.split), run.recipe.batch_size, seed, 0, run.world)
    while True:
        yield from run.train_loader.batches(order, rows, run.recipe.augment, seed, 0)


def compare_under_ray(spec: TrainingSpec, chunks: int, steps: int) -> dict[str, Any]:
    """compare in the only worker of a Ray Train job."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pose.training.ray import connect

    def on_worker(config: dict[str, Any]) -> dict[str, Any]:
        return compare(TrainingSpec.from_json(config["spec"]), chunks, steps)

    ray_params = spec.params.training.ray
    connect(ray_params)
    trainer = TorchTrainer(
        on_worker,
        train_loop_config={"spec": spec.to_json()},
        scaling_config=ScalingConfig(resources_per_worker={"CPU": ray_params.cpus_per_worker}),
        run_config=RunConfig(name="benchmark", storage_path=str(spec.storage)),
    )
    return trainer.fit().return_value


def noise(directory: Path, rows: int, size: int) -> None:
    """Shards of random pictures: what they show does not change how long a step takes."""
    random = np.random.default_rng(0)

    def row(index: int) -> Row:
        encoded = io.BytesIO()
        pixels = random.integers(0, 255, (size // 8, size // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((size, size)).save(encoded, "JPEG", quality=92)
        return Row(
            jpeg=encoded.getvalue(), file_name=f"{index}.jpg", image_id=index, annotation_id=index,
            image_size=(size, size), box=np.array([0, 0, size, size], np.float32),
            keypoints=random.uniform(0, size, (LSP14.size, 2)).astype(np.float32),
            visibility=np.full(LSP14.size, 2, np.uint8), to_crop=np.eye(2, 3, dtype=np.float32),
        )  # fmt: skip

    for split, count in {"train": rows, "val": 8}.items():
        write_shards((row(i) for i in range(count)), directory, split, 1000, LSP14, CropParams(view="image", size=size))


def specification(system: str, recipe: str, directory: Path, threads: int) -> TrainingSpec:
    """The profile lspet-cpu's network with a single phase that trains all of it."""
    params = load("lspet-cpu", [f"systems.{system}.recipe={recipe}", f"training.threads={threads}"])
    block = params.systems[system]
    phase = block.chosen.phases[-1]
    everything = sorted({group for p in block.chosen.phases for group in p.train})
    phase = phase.model_copy(
        update={"train": everything, "losses": {t: 1.0 for p in block.chosen.phases for t in p.losses}}
    )
    chosen = block.chosen.model_copy(update={"phases": [phase]})
    block = block.model_copy(update={"recipes": {recipe: chosen}})
    training = params.training.model_copy(
        update={"checkpoint": params.training.checkpoint.model_copy(update={"every_steps": 10**9})}
    )
    params = params.model_copy(update={"systems": params.systems | {system: block}, "training": training})
    return TrainingSpec(system, params, directory / "data", "noise", directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--system", default="baseline1")
    parser.add_argument("--recipe", default="paper", choices=["paper", "modern"])
    parser.add_argument("--chunks", type=int, default=30)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "data").mkdir()
        noise(directory / "data", 512, 128)
        spec = specification(arguments.system, arguments.recipe, directory, arguments.threads)
        results = {"one process": compare(spec, arguments.chunks, arguments.steps)}
        if not arguments.no_ray:
            results["Ray Train, one worker"] = compare_under_ray(spec, arguments.chunks, arguments.steps)
    print(f"{arguments.system}, recipe {arguments.recipe}, batch {spec.recipe.batch_size}")
    print(f"{'where':24}{'engine':>12}{'bare':>12}{'median ratio':>14}{'quartiles':>16}{'target':>9}")
    for where, r in results.items():
        low, high = r["quartiles"]
        print(
            f"{where:24}{r['engine_ms']:9.1f} ms{r['bare_ms']:9.1f} ms{r['median_ratio']:14.3f}"
            f"{f'{low:.3f}–{high:.3f}':>16}{TARGETS[where]:9.2f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(vars(arguments) | {"json": None, "results": results}, indent=1))


if __name__ == "__main__":
    main()
