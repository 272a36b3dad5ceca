"""SimpleBaseline in ONNX Runtime against eager PyTorch, the exported graph with its normalisation and decoding.

    python -m benchmarks.onnx [--depth 50]

Fresh weights, 192 x 256 px, no flip test, one thread; both take turns in one process. `same` is the
share of joints within SAME px of each other: fresh weights answer with near ties. Trained ones are held to
export.tolerance_px at every export.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.decoding import compare
from pose.config_loading import load
from pose.export import OUTPUTS, Deployed, onnx_network, write_programs
from pose.skeleton import COCO17
from pose.systems import create

BATCHES = (1, 8)
SAME = 0.1


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    block = load().systems["simple_baseline"]
    params = type(block).model_validate(block.model_dump() | {"depth": arguments.depth, "flip_test": False})
    system = create("simple_baseline", params, COCO17)
    deployed = Deployed(system).eval()
    width, height = params.input_size
    images = np.random.default_rng(0).integers(0, 256, (max(BATCHES), 3, height, width), dtype=np.uint8)
    results = {}
    print(f"SimpleBaseline-R{arguments.depth}, {width} x {height} px, one thread")
    print(f"{'batch':>5}{'onnx':>14}{'eager':>14}{'ratio':>8}{'same':>8}")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False), torch.no_grad():
        write_programs(deployed, params.input_size, Path(folder), OUTPUTS, any_batch=True)
        run = onnx_network(Path(folder) / "model.onnx", threads=1)
        for batch in BATCHES:
            some = images[:batch]
            tensor = torch.from_numpy(some)
            same = float((np.abs(run(some)[0] - deployed(tensor)[0].numpy()).max(axis=2) <= SAME).mean())
            r = compare(lambda some=some: run(some), lambda tensor=tensor: deployed(tensor), arguments.rounds)
            results[batch] = r | {"same": same}
            each = {way: 1e3 * r[way] / batch for way in ("ours", "loop")}
            print(f"{batch:5}{each['ours']:9.1f} ms/p.{each['loop']:9.1f} ms/p.{r['ratio']:8.2f}{same:8.1%}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"depth": arguments.depth, "results": results}, indent=1))


if __name__ == "__main__":
    main()
