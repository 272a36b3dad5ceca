"""params.yaml as types. Profiles and `--set` are overlays; what comes out is frozen and fully checked.

Types of one system's own sizes live beside that system, in pose/systems/.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from pose.errors import ConfigError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Tally = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Side = Annotated[int, Field(ge=16)]


def _width_and_height(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


InputSize = Annotated[tuple[Side, Side], BeforeValidator(_width_and_height)]
"""Width and height in pixels; a single number is a square."""
TORCHVISIONS = re.compile(r"\w+_Weights\.[A-Z][A-Z0-9_]*")
"""How torchvision names the weights that it downloads, as ResNet50_Weights.IMAGENET1K_V1."""


class Strict(BaseModel):
    """A block of params.yaml: unknown keys are refused, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


# ---------------------------------------------------------------- data


class ArchiveSource(Strict):
    """One place an archive can come from. `mirror` is POSE_MIRROR/<file>, `mirror/a` is POSE_MIRROR/a/<file>."""

    url: str
    sha256: str | None = None
    bytes: Count | None = None


class ArchiveParams(Strict):
    """A downloaded dataset archive; sources are tried in order, POSE_MIRROR before all."""

    file: str
    sources: list[ArchiveSource]
    licence: str


class SyntheticParams(Strict):
    """A dataset drawn by pose.data.synthetic."""

    skeleton: str
    images: Count
    width: Count
    height: Count
    people: tuple[Count, Count] = Field(description="fewest and most people per image")
    seed: Seed


class CollageParams(Strict):
    """A dataset tiled by pose.data.collage from the people of another, which is prepared before it."""

    of: str = Field(description="the other dataset")
    images: Count
    width: Count
    height: Count
    people: tuple[Count, Count] = Field(description="fewest and most tiles per image, one person each")
    overlap: Fraction = Field(description="share of its side by which a tile may reach over its neighbours")
    seed: Seed


class CropParams(Strict):
    """What of an image the person view stores, as a JPEG of size x size pixels."""

    view: Literal["image", "person"] = Field(
        description="image: the whole image squashed to a square; person: the box with a margin, aspect kept"
    )
    size: Count
    margin: Positive = 1.25
    quality: Annotated[int, Field(ge=1, le=100)] = 92


class SceneParams(Strict):
    """How the scene view stores whole images: the longer side is `size` px."""

    size: Count
    quality: Annotated[int, Field(ge=1, le=100)] = 92


class SplitParams(Strict):
    """Shares of the images in each split; they sum to one. Images whose split the dataset itself says do not count."""

    train: Fraction
    val: Fraction
    test: Fraction

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitParams:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + val + test is {total:g}, expected 1")
        return self


class CheckParams(Strict):
    """Thresholds of the annotation audit."""

    max_bad_share: Fraction = Field(description="more bad records than this share is an error")
    outside_tolerance: NonNegative = Field(description="px a visible joint may lie outside its image and be clipped")
    max_limb_share: Positive = Field(description="a limb longer than this share of the person's extent is suspect")
    min_visible: Tally = Field(description="fewer visible joints than this is a warning")
    duplicate_correlation: Fraction = Field(description="thumbnail correlation above which images are near-duplicates")
    max_pixels: Count = Field(description="larger images are refused before they are decoded")


class DatasetParams(Strict):
    """One dataset, from its archive to its shards. Changes here are DVC's business, not a profile's."""

    kind: Literal["lspet", "lsp", "coco", "collage", "synthetic"]
    archives: list[ArchiveParams] = Field(default=[], description="unpacked together into one folder")
    synthetic: SyntheticParams | None = None
    collage: CollageParams | None = None
    crop: CropParams
    scene: SceneParams | None = Field(default=None, description="null: no shards for systems of the scene view")
    split: SplitParams
    check: CheckParams
    shard_rows: Count

    @model_validator(mode="after")
    def _source_present(self) -> DatasetParams:
        wanted = self.kind if self.kind in ("synthetic", "collage") else "archives"
        if not getattr(self, wanted):
            raise ValueError(f"kind {self.kind} needs a block {wanted!r}")
        return self


# ---------------------------------------------------------------- recipes


class OptimiserParams(Strict):
    """What moves the weights."""

    kind: Literal["sgd", "adagrad", "adam", "adamw"]
    lr: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = Field(default=False, description="sgd: momentum as Nesterov's, which looks a step ahead")
    weight_decay: NonNegative = 0.0

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> OptimiserParams:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is true with momentum 0; give it a momentum or leave nesterov out")
        return self


class ScheduleParams(Strict):
    """Learning-rate factor over one phase, per optimiser step."""

    kind: Literal["constant", "step", "cosine", "plateau"]
    warmup_steps: Tally = 0
    milestones: list[Fraction] = Field(default=[], description="step: shares of the phase at which gamma applies")
    gamma: Positive | list[Positive] = Field(
        default=0.1, description="step: one for all milestones, or one for each; plateau: the factor of every fall"
    )
    patience: Tally = Field(default=10, description="plateau: epochs without improvement that pass before a fall")
    cooldown: Tally = Field(default=0, description="plateau: epochs after a fall that do not count")
    final: Fraction = Field(default=0.0, description="cosine: share of the rate that it falls to")

    @model_validator(mode="after")
    def _gamma_for_each_milestone(self) -> ScheduleParams:
        if isinstance(self.gamma, list) and len(self.gamma) != len(self.milestones):
            counts = f"{len(self.gamma)} values for {len(self.milestones)} milestones"
            raise ValueError(f"gamma has {counts}; expected one for each, or one number for all")
        return self

    @model_validator(mode="after")
    def _plateau_lowers(self) -> ScheduleParams:
        if self.kind == "plateau" and (isinstance(self.gamma, list) or self.gamma >= 1):
            raise ValueError(f"gamma of a plateau is {self.gamma}; expected one number below 1")
        return self


class AugmentParams(Strict):
    """Ranges of the random changes a training sample meets. Zero turns one off."""

    scale: Fraction = 0.0
    rotate: NonNegative = Field(default=0.0, description="degrees")
    translate: Fraction = Field(default=0.0, description="share of the input size")
    flip: Fraction = Field(default=0.0, description="probability")
    colour: Fraction = Field(default=0.0, description="strength of brightness, contrast and channel gain")
    erase: Fraction = Field(default=0.0, description="probability of one erased rectangle")
    half_body: Fraction = Field(default=0.0, description="probability of a view of half the person, not of an image")


class PhaseParams(Strict):
    """One phase of training: which parameter groups move, under which weighted loss terms, for how long."""

    name: str
    epochs: Tally
    train: list[str] = Field(min_length=1)
    losses: dict[str, Positive] = Field(min_length=1)
    lr_factor: Positive = 1.0
    patience: Count | None = Field(default=None, description="epochs without improvement after which it stops early")


class RecipeParams(Strict):
    """How one system is trained."""

    batch_size: Count = Field(description="over all workers together")
    accumulate: Count = 1
    clip_norm: Positive | None = None
    ema_decay: Fraction | None = None
    optimiser: OptimiserParams
    schedule: ScheduleParams
    augment: AugmentParams
    phases: list[PhaseParams] = Field(min_length=1)

    @property
    def idle(self) -> bool:
        """Whether nothing is trained: `initial` weights are taken as they are."""
        return not any(phase.epochs for phase in self.phases)


class SystemParams(Strict):
    """What every system's block has; a system adds its own sizes in a subclass."""

    recipe: str
    recipes: dict[str, RecipeParams]
    input_size: InputSize = Field(description="width and height of what the network sees, px; one number: a square")
    padding: Positive = Field(
        default=1.25, description="person view: the box times this, then widened to the input's aspect"
    )
    initial: str | None = Field(
        default=None,
        description="weights that training begins with: a file, a folder of ours, or the name of torchvision's",
    )
    paths: ClassVar[dict[str, set[str]]] = {}
    """Fields that say where `files` lie, which decides nothing of what is trained."""
    test_time: ClassVar[frozenset[str]] = frozenset()
    """Fields that say how a trained network is used, which a trained model can be given anew."""

    @model_validator(mode="after")
    def _recipe_known(self) -> SystemParams:
        if self.recipe not in self.recipes:
            raise ValueError(f"recipe is {self.recipe!r}, expected one of {', '.join(self.recipes)}")
        return self

    @model_validator(mode="after")
    def _trains_something(self) -> SystemParams:
        idle = [name for name, recipe in self.recipes.items() if recipe.idle]
        if idle and self.initial is None:
            raise ValueError(
                f"recipes.{idle[0]}: every phase has 0 epochs, so nothing would be trained; that is of use where "
                "`initial` names finished weights"
            )
        return self

    @property
    def chosen(self) -> RecipeParams:
        """The recipe that `recipe` names."""
        return self.recipes[self.recipe]

    @property
    def initial_file(self) -> Path | None:
        """The file of weights that `initial` names; None where it is null or torchvision's. ConfigError for none."""
        if self.initial is None or TORCHVISIONS.fullmatch(self.initial):
            return None
        path = ROOT / self.initial
        path = path / "model.safetensors" if path.is_dir() else path
        if not path.is_file():
            raise ConfigError(
                f"there is no file {path}; expected a file of weights, a training folder or bundle, or a name like "
                "ResNet50_Weights.IMAGENET1K_V1"
            )
        return path

    @property
    def files(self) -> tuple[Path, ...]:
        """What a training reads besides the dataset."""
        return () if self.initial_file is None else (self.initial_file,)

    @property
    def awaits(self) -> str | None:
        """The key, if any, that asks for the boxes which the run's own person detector finds in the training split."""
        return None

    def with_boxes(self, path: Path | None) -> Self:
        """The same with this file of boxes at that key. Only for systems that await some."""
        raise NotImplementedError(f"{type(self).__name__} awaits no boxes")


# ---------------------------------------------------------------- engine and pipeline


class CheckpointParams(Strict):
    """How often a training can be resumed from, and how many of those states are kept."""

    every_steps: Count = Field(description="steps between checkpoints inside an epoch")
    keep: Count


class RayParams(Strict):
    """Where training runs. workers = 0 trains in the calling process, without Ray."""

    workers: Tally
    min_workers: Count | None = Field(default=None, description="elastic: go on with as few as this")
    cpus_per_worker: Positive = 1
    gpus_per_worker: NonNegative = 0
    max_failures: Tally = 3
    address: str | None = Field(default=None, description="Ray dashboard of a cluster, for jobs; null: this machine")
    storage_path: str | None = Field(default=None, description="what travels between machines; null: one disk for all")
    poll_seconds: Positive = 0.5

    @model_validator(mode="after")
    def _range_is_one(self) -> RayParams:
        if self.min_workers is not None and self.min_workers > max(1, self.workers):
            raise ValueError(f"min_workers is {self.min_workers}, more than workers ({self.workers})")
        return self


class TrainingParams(Strict):
    """The engine: what every system is trained with alike."""

    precision: Literal["fp32", "bf16"]
    channels_last: bool
    compile: bool
    deterministic: bool
    threads: Tally = Field(description="torch threads per worker; 0: one per available core")
    loader_threads: Count
    checkpoint: CheckpointParams
    ray: RayParams


class EvaluationParams(Strict):
    """On which split models are compared, and how sure of it we want to be."""

    split: Literal["val", "test"]
    resamples: Count
    confidence: Annotated[float, Field(gt=0, lt=1)]
    gallery: Count = Field(description="pictures in each gallery of the report")
    detections: str | None = Field(
        default=None,
        description="JSON list of person boxes for systems of single people; null: the run's person_detector's",
    )


class ExportParams(Strict):
    """What an exported model must repeat before it is registered."""

    tolerance_px: Positive = Field(description="largest difference in input pixels between network and export")
    parity_images: Count
    latency_runs: Count


class PromotionParams(Strict):
    """When a challenger replaces the champion: the metric is better by more than the margin, surely."""

    metric: Literal[
        "pck_image_12", "pck_torso_02", "pck_torso_auc", "pcp_strict", "pcp_loose", "pckh_05", "mse_unit", "oks_ap",
        "oks_ap_detected",
    ]  # fmt: skip
    margin: NonNegative
    resamples: Count
    confidence: Annotated[float, Field(gt=0, lt=1)]


class Params(Strict):
    """The whole of params.yaml with its overlays."""

    seed: Seed
    dataset: str
    architectures: list[str] = Field(min_length=1)
    parallel: Count = Field(description="architectures trained side by side")
    storage: str
    data: dict[str, DatasetParams]
    systems: dict[str, Any]
    training: TrainingParams
    evaluation: EvaluationParams
    export: ExportParams
    promotion: PromotionParams

    @property
    def dataset_params(self) -> DatasetParams:
        """The block of the dataset this run uses."""
        return self.data[self.dataset]

    @property
    def detections_path(self) -> Path | None:
        """The file that `evaluation.detections` names, below the checkout unless it is absolute."""
        given = self.evaluation.detections
        return None if given is None else ROOT / given

    @property
    def storage_path(self) -> Path:
        """Where runs, models and reports lie: `storage`, below the checkout unless it is absolute."""
        return ROOT / self.storage


ROOT = Path(__file__).resolve().parent.parent
"""The checkout: params.yaml, dvc.yaml and infra/ lie here."""
