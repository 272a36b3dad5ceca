"""DeepCut and DeeperCut: candidate joints, and an integer program that says which of them make which people.

ResNet - deconvolution - part scores, refinement, offsets to the other joints of the same person; candidates; pairwise
probabilities by logistic regression; partition and labelling with a proven gap

Source: Pishchulin et al., CVPR 2016 (the program); Insafutdinov et al., ECCV 2016 (the network, the pairwise terms,
inference in stages) and the behaviour of the authors' releases. Theirs takes minutes to hours per image with a
commercial solver; pose.decoding.partition_search and partition_exact stand here instead. Where pixels are tied to
people of 400 px height there, they are shares of a person's box or standard deviations of the data here, and candidates
of one kind are suppressed within 2 cells rather than 5: the program joins what is double.

Before the detector's phase the offsets' means and deviations are taken from the training split; the last phase makes
probabilities of the part scores. When the network is trained, `fit` fits the pairwise regressions to the candidates
that it finds in the training split: a step of its own, see pose.fitting.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from pose.config import Count, Fraction, InputSize, NonNegative, PhaseParams, RecipeParams, Strict, SystemParams
from pose.data.batch import SceneBatch
from pose.decoding import partition_exact
from pose.decoding.candidates import Candidates, describe, find
from pose.decoding.partition import NONE, Partition, Problem
from pose.decoding.partition_graph import assemble, contract, found_in
from pose.decoding.partition_stages import solve_in_stages
from pose.errors import PoseError
from pose.found import Found, to_people
from pose.layers.pair_terms import Graph, OffsetStatistics, PairExamples, PairTerms
from pose.layers.part_detector import STRIDE as CELL
from pose.layers.part_detector import (
    PartDetector,
    Targets,
    offset_loss,
    radii,
    refinement_loss,
    score_loss,
    targets,
)
from pose.layers.resnet import Depth, load_imagenet_resnet
from pose.people import People
from pose.progress import say, track
from pose.skeleton import Skeleton
from pose.systems.base import Card
from pose.systems.scene_system import SceneSystem

STRIDE = 16
"""Sides of an input are multiples of this, so that the trunk's cells cover it exactly."""
CERTAIN = 1e-7
"""Probabilities are kept this far from 0 and 1."""
EARLY = (("head", "neck", "nose", "eye", "ear", "shoulder"), ("elbow", "wrist"))
"""Words in the names of joints that DeeperCut's first two stages decide; the third has the rest."""


class CandidateParams(Strict):
    """Which cells become candidates."""

    most: Count = Field(description="in one image; the likeliest stay, with a warning where there are more")
    floor: Fraction = Field(description="probability from which a cell is a candidate")
    radius: Count = Field(description="a candidate is the highest cell within so many cells")
    labels: Literal["kinds", "places"] = Field(
        description="kinds: candidates of one kind each (DeeperCut); places: of any kind over the floor (DeepCut)"
    )


class SolverParams(Strict):
    """How the integer program is solved."""

    seconds: NonNegative = Field(description="per image for the exact solve; 0: local search alone")
    stages: bool = Field(description="DeeperCut's incremental inference: head and shoulders, arms, the rest")


class DeepCutRecipe(RecipeParams):
    """How the detector is trained."""

    foreground: NonNegative = Field(
        description="cells near joints weigh 1 plus this in the part scores; 0: the paper's"
    )

    @model_validator(mode="after")
    def _calibrated_last(self) -> DeepCutRecipe:
        running = [phase for phase in self.phases if phase.epochs]
        if running and "calibration" not in running[-1].train:
            raise ValueError(
                f"the last phase trains {', '.join(running[-1].train)}, expected calibration too: the integer program "
                "takes the scores for probabilities, which only calibration makes of them"
            )
        return self


class DeepCutParams(SystemParams):
    """Sizes of DeepCut."""

    test_time = frozenset({"solver", "min_joints"})

    recipes: dict[str, DeepCutRecipe]  # type: ignore[assignment]
    depth: Depth
    width: Count = Field(description="channels of the ResNet's first layer; 64 in the paper")
    graph: Graph = Field(description="pairs of kinds with pairwise terms: full, or the skeleton's limbs")
    disc: Fraction = Field(description="cells within this share of a person's longer side from a joint are near it")
    examples: Count = Field(description="most pairs of candidates, together and apart, that fit one regression")
    fit_images: Count = Field(default=1000, description="most images of the training split that pairs are taken from")
    candidates: CandidateParams
    solver: SolverParams
    min_joints: Count = Field(description="people with fewer joints are none")

    @property
    def chosen(self) -> DeepCutRecipe:
        """The recipe that `recipe` names."""
        return self.recipes[self.recipe]

    @field_validator("input_size")
    @classmethod
    def _divisible(cls, size: InputSize) -> InputSize:
        if any(side % STRIDE for side in size):
            raise ValueError(f"is {size[0]}x{size[1]} px; expected sides that are multiples of {STRIDE}")
        return size


@dataclass(frozen=True)
class Solved:
    """One image's candidates, the program over them, its answer and the people in it."""

    candidates: Candidates
    problem: Problem
    partition: Partition
    unproven: float
    """Largest gap of what was solved: of the whole program, or in stages of one of them."""
    people: Found


class DeepCut(SceneSystem):
    """Outputs of pose.layers.part_detector.PartDetector."""

    Params = DeepCutParams
    loss_terms: ClassVar[tuple[str, ...]] = ("parts", "intermediate", "refinement", "offsets", "calibration")
    card: ClassVar[Card] = Card(
        title="DeepCut / DeeperCut",
        source="Pishchulin et al., CVPR 2016; Insafutdinov et al., ECCV 2016",
        published=(
            "MPII multi-person mAP on 288 images: DeepCut 54.1 in 57,995 s per image, DeeperCut 71.2 in 230 s; on the "
            "full test set DeeperCut 59.5 in 485 s"
        ),
        licence="our own code under this project's licence; nothing of the releases (LGPL-3, GPL) or of Gurobi",
        graph_lacks=(
            "the integer program: they put people together by greedy contraction, and their speed is of that. The "
            "figures are of the program's solution, which `pose predict` computes from the bundle's weights"
        ),
        fitted=(
            "the pairwise regressions: for each two kinds of joints the weights, how many pairs of candidates of the "
            "training split they were fitted to, and the share of these they have right"
        ),
    )

    def __init__(self, params: Any, skeleton: Skeleton) -> None:
        self._warned: set[str] = set()
        super().__init__(params, skeleton)

    def build(self) -> nn.Module:
        """[B, 3, H, W] to the maps."""
        p = self.params
        return PartDetector(self.skeleton, p.depth, p.width, p.graph)

    @property
    def detector(self) -> PartDetector:
        """The network under its own type."""
        return cast(PartDetector, self.network)

    @property
    def groups(self) -> dict[str, list[nn.Module]]:
        """trunk: the ResNet; heads: what makes maps of it; calibration: a factor and a shift per kind."""
        d = self.detector
        return {
            "trunk": d.trunk.trunk,
            "heads": [d.parts, d.refinement, d.offsets, d.intermediate],
            "calibration": [d.calibration],
        }

    def load_trunk(self, state: Mapping[str, Tensor]) -> None:
        """Takes torchvision's ResNet of the same depth; needs width: 64. Raises TrainingError where it misfits."""
        load_imagenet_resnet(self.detector.trunk, state)

    # ------------------------------------------------------------ training

    def begin_phase(self, phase: PhaseParams, batches: Callable[[], Iterator[Any]] | None) -> None:
        """Offset statistics before the heads learn them."""
        if batches is None or "heads" not in phase.train:
            return
        statistics = OffsetStatistics(self.detector.terms)
        for batch in track(batches(), "offsets between joints"):
            batch = self.prepare(batch)
            statistics.add(batch.keypoints[batch.people], batch.labelled[batch.people])
        statistics.store()

    @property
    def fits(self) -> bool:
        """The pairwise regressions."""
        return True

    @torch.no_grad()
    def fit(self, batches: Callable[[], Iterator[Any]], quality: Callable[[People], float]) -> dict[str, Any]:
        """The pairwise regressions, from the candidates that the network finds in the first images of the split; ends
        early when it has seen enough.
        """
        p, terms = self.params, self.detector.terms
        examples, images = PairExamples(terms, p.examples), 0
        for batch in track(batches(), "pairs of candidates"):
            batch = self.prepare(batch)
            outputs = self.forward(self.network, batch)
            for image in range(len(batch)):
                found = self._candidates(outputs, image, terms)
                found = found.chosen(found.valid)
                examples.add(found.part, found.position, found.offsets, self.owners(found, batch, image))
            images += len(batch)
            if examples.full or images >= p.fit_images:
                break
        kinds = [" and ".join(self.skeleton.joints[k] for k in pair) for pair in terms.kinds] + ["two of one kind"]
        fitted = [{"kinds": name, **facts} for name, facts in zip(kinds, examples.store(), strict=True)]
        return {"images": images, "pairwise regressions": fitted}

    def owners(self, found: Candidates, batch: SceneBatch, image: int) -> Tensor:
        """[N] int64, the person of the image whose joint each candidate is, -1 where it is nobody's.

        A candidate is a joint within twice the radius that the detector was taught.
        """
        joints = batch.keypoints[image][:, found.part].float()
        known = batch.labelled[image][:, found.part] & batch.people[image][:, None]
        apart = torch.linalg.vector_norm(joints - found.position, dim=2)
        reach = 2 * radii(batch.boxes[image], self.params.disc)[:, None]
        apart = torch.where(known & (apart <= reach), apart, torch.inf)
        least, person = apart.min(dim=0)
        return torch.where(least.isfinite(), person, -1)

    def targets(self, batch: SceneBatch) -> Targets:
        """What the maps should say of a prepared batch."""
        width, height = (side // CELL for side in self.params.input_size)
        labelled = batch.labelled & batch.people[..., None]
        return targets(batch.keypoints, labelled, batch.boxes, batch.ignored, (width, height), self.params.disc)

    def targets_preview(self, batch: SceneBatch) -> Tensor:
        """[B, h, w] in [0, 1]: which cells are near a joint."""
        return self.targets(batch).near.any(dim=1).float()

    def belief_maps(self, outputs: Any) -> Tensor:
        """[B, K, h, w], the probability of each kind of joint in each cell: for people to look at."""
        return outputs["scores"].float().sigmoid()

    def loss(self, outputs: Any, batch: SceneBatch) -> dict[str, Tensor]:
        """Cross-entropies over the cells that are not ignored, Huber losses near joints; 0 where nothing is known."""
        target = self.targets(batch)
        foreground = self.params.chosen.foreground
        return {
            "parts": score_loss(outputs["parts"], target, foreground),
            "intermediate": score_loss(outputs["intermediate"], target, foreground),
            "refinement": refinement_loss(outputs["refinement"], target),
            "offsets": offset_loss(outputs["offsets"], target, self.detector.terms),
            "calibration": score_loss(outputs["scores"], target, 0.0),
        }

    # ------------------------------------------------------------ decoding

    score_floor = 0.0
    """People are reported from this score on."""
    suppression = "partition"
    """A candidate belongs to one person at most; several of one kind make one joint."""

    def people(self, outputs: Any) -> Found:
        """Decoding in pure tensor code, so that an exported graph can hold it: greedy contraction and no more."""
        everyone, terms = [], self.detector.terms
        for image in range(outputs["scores"].shape[0]):
            found = self._candidates(outputs, image, terms)
            unary, pair = _cost(found.probability), -terms.logits(found.part, found.position, found.offsets)
            member = contract(unary, pair, found.valid)
            everyone.append(found_in(image, *assemble(found, member, self.skeleton.size, self.params.min_joints)))
        return Found.together(everyone)

    def decode(self, outputs: Any, batch: SceneBatch) -> People:
        """One row per person found, in pixels of the original images, image after image; presence is the confidence.

        With the gap of each person's image. Warns where images had more candidates than params allow, and where the
        exact solve ran out of time.
        """
        solved = self.solve(outputs)
        self._warn(solved, batch.image_ids.tolist())
        found = Found.together([each.people for each in solved]).to(batch.to_original.device)
        gaps = np.array([each.partition.gap for each in solved], np.float32)[found.image.cpu().numpy()]
        return replace(to_people(found, batch), optimality_gaps=gaps)

    def _warn(self, solved: list[Solved], image_ids: list[int]) -> None:
        """Once of each kind: a video would have a line for every frame."""
        most, seconds = self.params.candidates.most, self.params.solver.seconds
        counts = [int(each.candidates.above) for each in solved]
        crowded = [i for i, count in enumerate(counts) if count > most]
        if crowded and "crowded" not in self._warned:
            self._warned.add("crowded")
            say(
                f"warning: {len(crowded)} of {len(solved)} images have more than {most} candidate joints (image id "
                f"{image_ids[crowded[0]]} has {counts[crowded[0]]}); the likeliest {most} are kept. If people are "
                "missing, raise systems.deepcut.candidates.most, or its floor or radius. Later images like it are not "
                "named"
            )
        open_ones = [i for i, each in enumerate(solved) if each.unproven > 0]
        if open_ones and seconds > 0 and "unproven" not in self._warned:
            self._warned.add("unproven")
            worst = max(open_ones, key=lambda i: solved[i].unproven)
            say(
                f"warning: {len(open_ones)} of {len(solved)} images were not solved to a proven optimum in {seconds:g} "
                f"s; the largest gap is {solved[worst].unproven:.2%} (image id {image_ids[worst]}). The best answer "
                "found is kept; for proofs raise systems.deepcut.solver.seconds. Later images like it are not named"
            )

    def solve(self, outputs: Any) -> list[Solved]:
        """Every image's program and its answer. Raises PoseError for maps that are not numbers."""
        maps = {name: outputs[name].detach().float().cpu() for name in ("scores", "refinement", "offsets")}
        broken = [i for i in range(len(maps["scores"])) if not all(part[i].isfinite().all() for part in maps.values())]
        if broken:
            raise PoseError(
                f"DeepCut's maps of image {broken[0]} of {len(maps['scores'])} in this batch hold values that are not "
                "numbers, so nobody can be found in them; the weights are broken or precision is too low. Evaluate an "
                "earlier checkpoint, or train again with a lower learning rate or clip_norm set"
            )
        terms = copy.deepcopy(self.detector.terms).cpu()
        return [self._solve(maps, image, terms) for image in range(len(maps["scores"]))]

    def _solve(self, maps: dict[str, Tensor], image: int, terms: PairTerms) -> Solved:
        p = self.params
        places = self._candidates(maps, image, terms)
        places = places.chosen(places.valid)
        options, owner = self._options(maps, image, places, terms)
        problem = problem_of(options, owner, terms.logits(options.part, options.position, options.offsets))
        if p.solver.stages:
            stages = self.stages(options.part.numpy())
            solver = partial(partition_exact.solve, time_limit=p.solver.seconds / max(1, len(stages)))
            partition, gaps = solve_in_stages(problem, stages, solver)
            unproven = max(gaps, default=0.0)
        else:
            partition = partition_exact.solve(problem, p.solver.seconds)
            unproven = partition.gap
        taken = partition.option != NONE
        member = torch.zeros(len(options.part), partition.people)
        member[partition.option[taken], partition.person[taken]] = 1
        people = found_in(image, *assemble(options, member, self.skeleton.size, p.min_joints))
        return Solved(places, problem, partition, unproven, people)

    def stages(self, part: np.ndarray) -> list[np.ndarray]:
        """Masks [N] of the options of each of DeeperCut's stages; those without any are left out."""
        stage = [
            next((n for n, words in enumerate(EARLY) if any(word in joint.split("_") for word in words)), len(EARLY))
            for joint in self.skeleton.joints
        ]
        masks = [np.array(stage)[part] == n for n in range(len(EARLY) + 1)]
        return [mask for mask in masks if mask.any()]

    def _candidates(self, outputs: dict[str, Tensor], image: int, terms: PairTerms) -> Candidates:
        c = self.params.candidates
        maps = {name: outputs[name][image] for name in ("scores", "refinement", "offsets")}
        return find(maps, terms, c.most, c.floor, c.radius, places=c.labels == "places")

    def _options(
        self, maps: dict[str, Tensor], image: int, places: Candidates, terms: PairTerms
    ) -> tuple[Candidates, np.ndarray]:
        """Every candidate once as each kind it can be, and the candidate [N] of each of these options."""
        if self.params.candidates.labels == "kinds":
            return places, np.arange(len(places.part))
        own = {name: part[image] for name, part in maps.items()}
        probability = own["scores"].sigmoid().flatten(1)[:, places.cell].T
        owner, part = torch.nonzero(probability >= self.params.candidates.floor, as_tuple=True)
        cell, chance = places.cell[owner], probability[owner, part]
        every = torch.ones_like(part, dtype=torch.bool)
        return describe(own, terms, part, cell, chance, every, places.above), owner.numpy()


def problem_of(options: Candidates, owner: np.ndarray, logits: Tensor) -> Problem:
    """The integer program: log-odds against each option, and against each two being of one person."""
    pair = -logits.double().numpy()
    pair = np.where(owner[:, None] == owner, 0.0, (pair + pair.T) / 2)
    return Problem(owner.astype(np.int64), _cost(options.probability.double()).numpy(), pair)


def _cost(probability: Tensor) -> Tensor:
    sure = probability.clamp(CERTAIN, 1 - CERTAIN)
    return torch.log((1 - sure) / sure)
