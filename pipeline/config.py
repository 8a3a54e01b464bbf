"""The typed configuration: every default stands here and nowhere else.

A training is one `Configuration`. An experiment file describes many: ``base`` is what differs from
the defaults, each entry of ``configs`` what differs from base, and ``space`` what is searched after
the list. Dotted overrides from the command line win over all three.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from pipeline.errors import UserError, first_line, nearest

Raw = dict[str, Any]
SomeModel = TypeVar("SomeModel", bound=BaseModel)

FORBIDDEN_IN_NAMES = r"""[/\\:,%?'"`\x00-\x1f]"""
Fit = Literal["crop", "pad", "stretch"]
MOST_WHITE = 2**32 - 1
DEFAULT_GAMMA = {"exponential": 0.95, "step": 0.1, "plateau": 0.1}
FILE = "file:"
"""Prefix of networks and weights that are files: ``file:PATH.py:FUNCTION``, ``file:PATH``."""
NOT_EMPTY: Sequence[str] = ()
"""In `Facts.applies`: any value but an empty one."""
_EMPTY = ("", "None", "[]", "()", "{}")
_SAME_IMAGES = "all trainings of a study see the same images"
_OF_IMAGES: Raw = {"hashed": False, "shared": _SAME_IMAGES}
"""Facts of a field that decides which images are used, and in which split.

The data digest holds what it decides.
"""


@dataclass(frozen=True)
class Facts:
    """What the rest of the pipeline must know of a field beside its type and its limits.

    Attributes:
        essential: Whether ``--help`` shows the field first. It shows the others under "more".
        hashed: Whether the field changes the result of a training, and so enters the hash of a
            configuration.
        later: Whether the field is younger than release 0.1.0. It then enters the hash only if it
            differs from its default, which is what that release did.
        shared: Why all trainings of a study have the same value, so that neither list nor space may
            change it. Empty if their values may differ.
        applies: Values of other fields, by dotted name. The field has an effect only if each of
            these fields has one of its values.
        label: Name of the field in tables whose runs differ in it. Empty means the dotted name, if
            the field is hashed or decides which images are used.
    """

    essential: bool = False
    hashed: bool = True
    later: bool = False
    shared: str = ""
    applies: Mapping[str, Sequence[str]] = dataclass_field(default_factory=dict)
    label: str = ""


_FACTS = {fact.name for fact in dataclass_fields(Facts)}


def essential(default: Any, description: str, **facts_and_rules: Any) -> Any:
    """Declare a field that ``--help`` shows first.

    Args:
        default: Value of a field that is not given.
        description: Help text.
        facts_and_rules: Attributes of `Facts`, and pydantic's rules such as ``ge``.
    """
    return more(default, description, essential=True, **facts_and_rules)


def more(default: Any, description: str, **facts_and_rules: Any) -> Any:
    """Declare a field that ``--help`` shows under "more", with the arguments of `essential`."""
    known = Facts(**{name: value for name, value in facts_and_rules.items() if name in _FACTS})
    rules = {name: value for name, value in facts_and_rules.items() if name not in _FACTS}
    extra = cast(Any, {"facts": known})
    return Field(default, description=description, json_schema_extra=extra, **rules)


def facts_of(field: FieldInfo) -> Facts:
    """Return what is declared with a field."""
    extra = field.json_schema_extra
    found = extra.get("facts") if isinstance(extra, dict) else None
    return found if isinstance(found, Facts) else Facts()


def parse_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Return what a YAML text holds.

    Raises:
        yaml.YAMLError: The text is no YAML, is nested too deeply, or holds a number or a date that
            does not exist.
    """
    try:
        return yaml.load(text, loader)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except ValueError as error:
        raise yaml.YAMLError(first_line(error)) from None


def valid_name(text: str) -> str:
    """Return a name that serves as a folder, a registered model and part of a search.

    An empty name is allowed.

    Raises:
        ValueError: The name holds a character that one of them does not take.
    """
    wrong = re.search(FORBIDDEN_IN_NAMES, text)
    if wrong or text in (".", "..") or len(text) > 120:
        raise ValueError(
            "a name has at most 120 characters, "
            "none of them / \\ : , % ? quotes or control characters, and is not . or .."
        )
    return text


Name = Annotated[str, AfterValidator(valid_name)]


def _number_or(word: str, least: int = 0) -> BeforeValidator:
    def check(given: Any) -> Any:
        if given == word or (str(given).isdecimal() and int(given) >= least):
            return given
        raise ValueError(f"must be a whole number from {least}, or {word}")

    return BeforeValidator(check)


Fold = Annotated[int | Literal["all"], _number_or("all")]
Workers = Annotated[int | Literal["auto"], _number_or("auto")]
TrialWorkers = Annotated[int | Literal["auto"], _number_or("auto", 1)]


def _check_white(given: Any) -> Any:
    if given in ("type", "auto") or (str(given).isdecimal() and 1 <= int(given) <= MOST_WHITE):
        return given
    raise ValueError(f"must be type, auto, or a grey level from 1 to {MOST_WHITE}")


White = Annotated[int | Literal["type", "auto"], BeforeValidator(_check_white)]


class Section(BaseModel):
    """One part of a configuration; unknown fields, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Section):
    """Which images are used, how they are split and what is done to them."""

    source: str = essential(
        "digits",
        "Where the images come from: digits (scikit-learn's, built in), "
        "folder:PATH (one folder per class), csv:PATH (columns image and label), "
        "npz:PATH (MedMNIST's layout) or torchvision:NAME.",
        min_length=1,
        **_OF_IMAGES,
    )
    image_size: int = essential(
        224,
        "Side in pixels of the square image that the network sees.",
        ge=8,
        le=2048,
        label="size",
    )
    batch_size: int = essential(32, "Images per optimizer step.", ge=1, label="batch")
    augment: list[str | dict[str, Any]] = essential(
        [],
        "Random changes to training images, in this order: torchvision v2 names, "
        "or {NAME: {argument: value}}.",
        label="augment",
    )
    store_size: int = more(
        0,
        "Shorter side in pixels that images are decoded to; 0 means 256/224 of image_size, "
        "or image_size itself if it is below 128 or fit is not crop.",
        ge=0,
        le=4096,
    )
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"] = more(
        "bilinear", "How images are resized to store_size."
    )
    val_fraction: float = more(
        0.15,
        "Part of the images that validates, if the source has no val folder.",
        gt=0,
        lt=1,
        **_OF_IMAGES,
    )
    test_fraction: float = more(
        0.15,
        "Part of the images that is kept for the test, if the source has no test folder.",
        gt=0,
        lt=1,
        **_OF_IMAGES,
    )
    seed: int = more(0, "Seed of the split.", ge=0, **_OF_IMAGES)
    limit: int = more(
        0,
        "Use about this many images at most, a stratified sample with enough of each class "
        "to split; 0 means all.",
        ge=0,
        **_OF_IMAGES,
    )
    workers: Workers = more(
        "auto",
        "Number of processes that augment images, without influence on the result; 0 means that "
        "the training process does it. auto means up to four if CUDA trains, or up to 16 for more "
        "than crops and flips; else none, since the network needs the cores itself.",
        hashed=False,
    )
    bad: Literal["error", "warn", "drop"] = essential(
        "error",
        "What to do about unreadable images: error (stop), warn (leave them out and list them), "
        "drop (leave them out).",
        **_OF_IMAGES,
    )
    duplicates: Literal["group", "error", "warn", "drop", "ignore"] = essential(
        "group",
        "What to do about equal and nearly equal images: group (keep them on one side of a split), "
        "error (stop), warn (list them), drop (keep one, never dropping from the test split), "
        "ignore (do not look).",
        **_OF_IMAGES,
    )
    near_distance: int = more(
        4,
        "Images are nearly equal up to this many differing bits of their 64-bit perceptual hashes; "
        "with -1 only equal pixels count.",
        ge=-1,
        le=16,
        **_OF_IMAGES,
    )
    folds: int = essential(
        0,
        "Cross-validate over this many folds of the images that are not test; "
        "0 means one validation split.",
        ge=0,
        **_OF_IMAGES,
    )
    fold: Fold = essential(
        0,
        "The fold that validates, from 0; in a study, all means every configuration on every fold.",
        **_OF_IMAGES,
        label="fold",
    )
    store: Literal["disk", "none"] = more(
        "disk",
        "disk decodes once into prepared/; none decodes the files again each epoch, "
        "for sets too large for the disk. The result is the same.",
        hashed=False,
        shared="all trainings of a study read images in the same way",
    )
    max_pixels: int = more(
        64_000_000, "Images of more pixels are refused before they are decoded.", ge=1, **_OF_IMAGES
    )
    background: str = more(
        "white",
        "Colour below transparent pixels, and beside padded pictures: a name, or #rrggbb.",
        shared=_SAME_IMAGES,
    )
    fit: Fit = more(
        "crop",
        "What becomes of pictures that are not square: crop (the middle is seen), "
        "pad (all is seen, with data.background beside it) or stretch (all is seen, out of shape).",
        later=True,
        label="fit",
    )
    white: White = more(
        "type",
        "Which grey level is white in pictures of more than 8 bits: type (65535 for 16 bits; "
        "for 32 bits the least of 1, 255 and 65535 that the picture stays below), "
        "auto (the least 2^k - 1 that no training image exceeds), or a number.",
        later=True,
        shared=_SAME_IMAGES,
    )
    root: str = more(
        "",
        "Folder that the paths of a CSV start from (by default the folder of the CSV), "
        "or that holds the files of torchvision:NAME.",
        **_OF_IMAGES,
    )
    labels: str = more(
        "",
        "For csv:PATH, a second CSV with the labels, row by row in the same order.",
        **_OF_IMAGES,
    )
    image_column: str = more(
        "image",
        "For csv:PATH, the column of the image's path, with or without extension.",
        **_OF_IMAGES,
    )
    label_column: str = more("label", "For csv:PATH, the column of the class.", **_OF_IMAGES)
    split_column: str = more(
        "split",
        "For csv:PATH, the column of the split (train, val or test), if there is one.",
        **_OF_IMAGES,
    )
    group_column: str = more(
        "group",
        "For csv:PATH, the column of what must stay on one side of a split (a patient), "
        "if there is one.",
        **_OF_IMAGES,
    )

    ordered: bool = more(
        False,
        "Whether the classes are grades in the natural order of their names (0, 1, … 10). "
        "Cohen's kappa then counts an error by its squared distance.",
        hashed=False,
        shared="all runs of a study are scored alike",
    )

    @field_validator("background")
    @classmethod
    def _check_colour(cls, name: str) -> str:
        # To know Pillow's names, Pillow would have to be imported here. A name that it does not
        # know is refused when the first image is decoded.
        if not re.fullmatch(r"[a-zA-Z]+|#[0-9a-fA-F]{6}", name):
            raise ValueError("a colour is a name such as white, or #rrggbb")
        return name

    @model_validator(mode="after")
    def _check_sizes(self) -> Data:
        fractions = self.val_fraction + self.test_fraction
        if fractions >= 1:
            raise ValueError(f"val_fraction + test_fraction must be below 1, got {fractions:g}")
        if 0 < self.store_size < self.image_size:
            raise ValueError(
                f"store_size must be at least image_size ({self.image_size}), got {self.store_size}"
            )
        if self.fit != "crop" and self.store_size > self.image_size:
            raise ValueError(
                f"store_size must be 0 or image_size ({self.image_size}) with fit {self.fit}, "
                f"got {self.store_size}: of a larger picture the middle is shown, and not all"
            )
        return self

    @model_validator(mode="after")
    def _check_folds(self) -> Data:
        if self.folds == 1:
            raise ValueError("folds must be 0 (none) or at least 2, got 1")
        if self.fold != "all" and not 0 <= self.fold < max(self.folds, 1):
            if not self.folds:
                raise ValueError(f"fold {self.fold} needs folds")
            raise ValueError(f"fold must be all or below folds ({self.folds}), got {self.fold}")
        if self.fold == "all" and not self.folds:
            raise ValueError("fold all needs folds, such as folds 5")
        return self

    @property
    def stored_size(self) -> int:
        """The shorter side in pixels that images are stored at: `store_size` with 0 resolved."""
        if self.store_size:
            return self.store_size
        # Tiny images are framed already, and pictures that are kept whole are not cropped.
        if self.image_size < 128 or self.fit != "crop":
            return self.image_size
        return round(self.image_size * 256 / 224)

    @property
    def name(self) -> str:
        """What people call the data: the name of its folder, its file or the built-in set.

        The name of a file is given without its extension.
        """
        kind, _, rest = self.source.partition(":")
        if not rest:
            return kind
        path = Path(rest.replace("\\", "/")).expanduser().resolve()
        name = path.stem if kind in ("csv", "npz") else path.name
        return re.sub(FORBIDDEN_IN_NAMES, "_", name)


class Model(Section):
    """Which network is trained, and what it starts from."""

    name: str = essential(
        "resnet18",
        "A torchvision classification network, densenet264, small_cnn, "
        "timm/NAME (with the extra timm), or file:PATH.py:FUNCTION for one's own.",
    )
    weights: str = essential(
        "none",
        "What the network starts from: none (random), the name of published weights such as "
        "DEFAULT, file:PATH (a state dict or safetensors), or one's own models:/NAME@ALIAS, "
        "models:/NAME/VERSION or runs:/ID/model. A head for another number of classes is replaced.",
        label="weights",
    )
    freeze: Literal["none", "backbone"] = essential(
        "none", "backbone trains the new head only, on fixed features.", label="freeze"
    )
    dropout: float = more(0.0, "Dropout probability before the head.", ge=0, lt=1, label="dropout")

    @property
    def is_own(self) -> bool:
        """Whether the network is a function in a file of the user's own."""
        return self.name.startswith(FILE)

    @property
    def weights_kind(self) -> Literal["none", "file", "store", "published"]:
        """The origin of the weights: none, a file, the store or a library that publishes them.

        The store has them in a run or in a registered model.
        """
        if self.weights == "none":
            return "none"
        if self.weights.startswith(FILE):
            return "file"
        return "store" if self.weights.startswith(("models:/", "runs:/")) else "published"


OptimizerName = Literal[
    "sgd",
    "adam",
    "adamw",
]


class Optimizer(Section):
    """How weights are updated."""

    name: OptimizerName = essential(
        "adamw", f"The optimizer: {', '.join(get_args(OptimizerName))}.", label="optimizer"
    )
    lr: float = essential(
        1e-3, "Learning rate; with a schedule, its highest value.", gt=0, label="lr"
    )
    weight_decay: float = essential(
        1e-4, "Weight decay: L2 penalty for sgd and adam, decoupled for adamw.", ge=0, label="wd"
    )
    momentum: float = more(
        0.9, "Momentum of sgd.", ge=0, lt=1, label="momentum", applies={"optimizer.name": ("sgd",)}
    )
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = more(
        (0.9, 0.999),
        "Decay rates of the two moments of adam and adamw.",
        applies={"optimizer.name": ("adam", "adamw")},
    )


class Schedule(Section):
    """How the learning rate changes over time."""

    name: Literal["none", "exponential", "step", "cosine", "plateau"] = essential(
        "none",
        "Decay of the learning rate: none, exponential, step, cosine or plateau.",
        label="decay",
    )
    gamma: float | None = more(
        None,
        "Factor of the decay: per epoch for exponential (0.95 by default), "
        "every step_epochs for step (0.1), at each plateau for plateau (0.1).",
        gt=0,
        le=1,
        label="gamma",
        applies={"schedule.name": ("exponential", "step", "plateau")},
    )
    min_lr: float = more(
        0.0,
        "The learning rate never decays below this.",
        ge=0,
        applies={"schedule.name": ("exponential", "step", "cosine", "plateau")},
    )
    warmup_epochs: float = more(
        0.0,
        "Epochs over which the learning rate rises linearly to optimizer.lr.",
        ge=0,
        label="warmup",
    )
    step_epochs: int = more(
        10,
        "Epochs between two steps of the step schedule.",
        ge=1,
        applies={"schedule.name": ("step",)},
    )
    plateau_epochs: int = more(
        3,
        "Epochs without a lower validation loss after which plateau decays.",
        ge=1,
        applies={"schedule.name": ("plateau",)},
    )

    @model_validator(mode="before")
    @classmethod
    def _set_default_gamma(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and raw.get("gamma") is None:
            return {**raw, "gamma": DEFAULT_GAMMA.get(str(raw.get("name")))}
        return raw


BestMetric = Literal[
    "val/accuracy",
    "val/f1_macro",
    "val/balanced_accuracy",
    "val/loss",
]


class Training(Section):
    """How long the network trains, where, and with which random numbers."""

    epochs: int = essential(10, "Passes over the training images.", ge=1, label="epochs")
    seed: int = essential(
        0,
        "Seed of weights, order of images, dropout and augmentation.",
        ge=0,
        lt=2**31,
        hashed=False,
        label="seed",
    )
    patience: int = essential(
        0,
        "Stop after this many epochs without a training.best_metric at least as good as the best; "
        "0 means never.",
        ge=0,
    )
    class_weights: Literal["none", "balanced"] = essential(
        "none",
        "balanced weighs each class in the training loss by the inverse of how frequent it is.",
    )
    best_metric: BestMetric = more(
        "val/accuracy",
        "The metric that chooses the best epoch and ranks runs: its highest value is the best, "
        "or the lowest loss; of equal ones the latest.",
        shared="a study is ranked by one metric",
    )
    label_smoothing: float = more(
        0.0, "Part of each label that is spread evenly over all classes.", ge=0, lt=1
    )
    feature_views: int = more(
        0,
        "With model.freeze backbone and data.augment, the number of fixed views of each image, "
        "whose features are computed once; 0 augments anew each epoch. "
        "Without data.augment, features are always computed once.",
        ge=0,
        applies={"model.freeze": ("backbone",), "data.augment": NOT_EMPTY},
    )
    clip_norm: float = more(
        0.0, "Gradients are scaled down to this norm over all parameters; 0 means never.", ge=0
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = essential(
        "auto",
        "Number format: fp32, bf16 or fp16 (mixed), or auto, which is the fastest here, "
        "measured on a few steps, once per study and network.",
    )
    memory_format: Literal["auto", "contiguous", "channels_last"] = more(
        "auto",
        "Order of images and weights in memory; auto means the faster one, "
        "measured together with precision.",
    )
    compile: bool = more(
        False,
        "Compile the network with torch.compile, which takes a minute at first and needs a C++ "
        "compiler on a CPU; auto of precision and memory_format is measured without it.",
    )
    deterministic: bool = more(
        False,
        "Use only CUDA kernels that give the same result twice, which are slower. On a CPU all do.",
        hashed=False,
    )
    checkpoint_seconds: float = more(
        60.0,
        "Seconds of training between two resume checkpoints; "
        "a kill loses that much training, and a validation.",
        ge=0,
        hashed=False,
    )
    sampler: Literal["shuffle", "balanced"] = more(
        "shuffle",
        "shuffle shows every training image once an epoch; "
        "balanced draws as many, every class equally often.",
    )
    processes: int = more(
        1,
        "Number of processes on this machine that train one network together, "
        "each on its share of every batch and on its own GPU.",
        ge=1,
        hashed=False,
        shared="all of a study are trained by the same processes",
    )
    device: str = more(
        "auto",
        "auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps.",
        pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$",
        hashed=False,
    )

    @model_validator(mode="after")
    def _check_balance(self) -> Training:
        if self.class_weights == self.sampler == "balanced":
            raise ValueError(
                "class_weights and sampler are both balanced, which would correct twice; "
                "balance one of them"
            )
        return self


class Tracking(Section):
    """What is logged."""

    log_images: bool = more(
        True,
        "false is for private images: no picture of them is written or logged, "
        "only counts and paths.",
        hashed=False,
        shared="it is one for all trainings of a study",
    )
    keep_weights: int = more(
        0,
        "Number of a study's trainings that keep their weights once it has been evaluated, the "
        "best first; 0 keeps all. Scores, figures and predictions always stay.",
        ge=0,
        hashed=False,
        shared="it is one for all trainings of a study",
    )


Evaluated = Literal["all", "best", "none"]
"""Which complete runs of a study are evaluated."""


_FINALISTS = 0.3
"""Part of the searched trials that is trained to the end if `study.finalists` is 0."""


class Study(Section):
    """How many configurations are tried, and how."""

    name: Name = more(
        "",
        "Name of the study; empty means a name made of the experiment, its configuration, "
        "space and data.",
    )
    trials: int = essential(
        0,
        "Number of trainings in all, list and search together; "
        "0 means the list's length, or 20 with a space.",
        ge=0,
    )
    repeats: int = more(
        1,
        "How often each entry of the list is trained, each time with the next seed; "
        "with study.only, how often each of those is trained in all.",
        ge=1,
    )
    hours: float = essential(
        0.0,
        "Hours after which no further trial is begun; the running ones end in peace. 0 means none.",
        ge=0,
    )
    only: str = more(
        "",
        "Hashes of configurations of the study, separated by commas: nothing new is searched, and "
        "these are trained until each has study.repeats trainings.",
    )
    sampler: Literal["tpe", "random"] = more("tpe", "How the search space is sampled.")
    pruner: Literal["one_epoch", "hyperband", "median", "none"] = essential(
        "one_epoch",
        "When a searched trial is given up early, which saves epochs: one_epoch trains all for one "
        "epoch, and only the best to the end. Entries of the list are never given up.",
    )
    finalists: int = more(
        0,
        "Number of searched trials that pruner one_epoch trains to the end; 0 means three of ten.",
        ge=0,
    )
    evaluate: Evaluated = essential(
        "all",
        "Which complete runs are evaluated on the test images at the study's end: all, as the "
        "comparison needs, those of the best configuration, or none (main: at least the best).",
    )
    target: float = more(
        0.0,
        "Score to reach (validation accuracy, or training.best_metric); "
        "the comparison says which runs reach it, and when; 0 means none.",
        ge=0,
    )
    stop_at_target: bool = more(False, "Begin no further trial when one has reached study.target.")
    patience: int = more(
        0,
        "Begin no further trial when none of this many trials in a row was better than the best "
        "before them; 0 means never.",
        ge=0,
    )
    retry_failed: bool = more(
        False,
        "Train again, when the study starts, also those that their own configuration has failed; "
        "those that failed for a reason that may have passed always are.",
    )
    workers: TrialWorkers = essential(
        1,
        "Number of processes of this machine that train trials at the same time, each on its share "
        "of the cores, or on a GPU of its own. auto measures how many get most done.",
    )
    heartbeat: float = more(
        60.0,
        "Seconds between two signs of life of a worker. After twice that time without one, "
        "another worker goes on with its trial.",
        ge=1,
        le=3600,
    )
    storage: str = more(
        "",
        "Optuna's database as an SQLAlchemy URL; empty means optuna.db beside MLflow's. "
        "Workers on several machines share one on a server.",
    )
    launcher: Literal["local", "ray"] = more(
        "local",
        "Where the workers run: local on this machine, ray on the nodes of a Ray cluster.",
    )
    cpus: int = more(1, "With launcher ray: cores of each worker.", ge=1)
    gpus: float = more(
        0.0,
        "With launcher ray: GPUs of each worker; a part of one, such as 0.5, is shared.",
        ge=0,
    )

    def num_finalists(self, num_searched: int) -> int:
        """Return how many of so many searched trials pruner ``one_epoch`` trains to the end."""
        return self.finalists or math.ceil(_FINALISTS * num_searched)

    @model_validator(mode="after")
    def _check_used(self) -> Study:
        if self.launcher != "ray" and (self.cpus != 1 or self.gpus):
            name = "cpus" if self.cpus != 1 else "gpus"
            raise ValueError(f"{name} is given, and only launcher ray places workers by it")
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(f"gpus {self.gpus:g} given; a part of one GPU, or whole ones")
        return self

    @model_validator(mode="after")
    def _check_target(self) -> Study:
        if self.stop_at_target and not self.target:
            raise ValueError("stop_at_target is true, and no target is given")
        return self


class Configuration(Section):
    """The complete configuration of one training."""

    data: Data = Data()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    training: Training = Training()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _check_warmup(self) -> Configuration:
        if self.schedule.warmup_epochs > self.training.epochs:
            raise ValueError(
                f"schedule.warmup_epochs must be at most training.epochs "
                f"({self.training.epochs}), got {self.schedule.warmup_epochs:g}"
            )
        return self

    def change(self, section: str, **values: Any) -> Configuration:
        """Return the same configuration with other values of some fields of a section."""
        changed = getattr(self, section).model_copy(update=values)
        return self.model_copy(update={section: changed})

    def flat(self) -> dict[str, Any]:
        """Return every field by its dotted name."""
        return dict(flatten(self.model_dump(mode="json")))


SECTIONS: dict[str, type[Section]] = {
    "data": Data,
    "model": Model,
    "optimizer": Optimizer,
    "schedule": Schedule,
    "training": Training,
    "tracking": Tracking,
    "study": Study,
}


def flatten(raw: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(dotted name, value)`` of nested mappings, section fields as leaves."""
    for key, value in raw.items():
        if not prefix and key in SECTIONS and isinstance(value, Mapping):
            yield from flatten(value, f"{key}.")
        else:
            yield prefix + key, value


def merge(*layers: Mapping[str, Any]) -> Raw:
    """Merge section by section; later layers win. The value of a field is replaced whole."""
    merged: Raw = {}
    for layer in layers:
        for section, fields in layer.items():
            if isinstance(fields, Mapping) and isinstance(merged.get(section, {}), Mapping):
                merged[section] = {**merged.get(section, {}), **fields}
            else:
                merged[section] = fields
    return merged


def nest(dotted: Mapping[str, Any]) -> Raw:
    """Return ``{"a.b": c}`` as ``{"a": {"b": c}}``."""
    nested: Raw = {}
    for name, value in dotted.items():
        section, _, field = name.partition(".")
        nested.setdefault(section, {})[field] = value
    return nested


def field_names() -> list[str]:
    """Return the dotted name of every configuration field."""
    return [name for name, _ in declared(tuple(SECTIONS))]


def declared(section_names: Sequence[str] = ()) -> Iterator[tuple[str, FieldInfo]]:
    """Yield ``(dotted name, definition)`` of every field of some sections.

    Args:
        section_names: The sections. Empty means all but the study's.
    """
    for section in section_names or [name for name in SECTIONS if name != "study"]:
        for name, field in SECTIONS[section].model_fields.items():
            yield f"{section}.{name}", field


def identifies_study(dotted: str) -> bool:
    """Whether a field decides which study a configuration belongs to.

    A field does if it is hashed, or if it decides which images are used.
    """
    section, _, _ = dotted.partition(".")
    field = field_info(dotted)
    if field is None or section not in Configuration.model_fields:
        return False
    return facts_of(field).hashed or facts_of(field).shared == _SAME_IMAGES


def applies(dotted: str, values: Mapping[str, Any]) -> bool:
    """Whether a field has an effect beside the other values of a configuration.

    Args:
        dotted: Dotted name of the field.
        values: Values of the configuration by dotted name, typed or as the params of a run have
            them.
    """
    field = field_info(dotted)
    if field is None:
        return True
    for other, allowed in facts_of(field).applies.items():
        value = str(values.get(other))
        is_met = value in allowed if allowed else value not in _EMPTY
        if not is_met:
            return False
    return True


def field_info(dotted: str) -> FieldInfo | None:
    """Return a field's definition, or None if there is no such field."""
    section, _, name = dotted.partition(".")
    return SECTIONS[section].model_fields.get(name) if section in SECTIONS else None


def parse(model: type[SomeModel], raw: Any, where: str) -> SomeModel:
    """Validate `raw`.

    Args:
        model: The model that `raw` must fit.
        raw: Values that are not validated yet.
        where: The place that an error names, before the names of the wrong fields.

    Raises:
        UserError: Values are wrong. It has one finding for each, or one line for a single one.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        findings = [_explain(cast(Raw, detail), model) for detail in error.errors()]
    if len(findings) == 1:
        raise UserError(f"{where}: {findings[0]}")
    raise UserError(f"{where}: {len(findings)} values are not allowed", findings)


def _explain(detail: Raw, model: type[BaseModel]) -> str:
    # For a union pydantic names the branch too: ("augment", 0, "str").
    location = [
        part for part in detail["loc"] if part != "str" and not str(part).startswith("dict[")
    ]
    name = _dotted_name(location)
    if detail["type"] == "extra_forbidden":
        return _explain_unknown_field(name, location, model)
    if detail["type"] == "string_pattern_mismatch":
        field = field_info(name)
        if field is not None:
            return f"{name}: {detail['input']!r} given; allowed: {field.description}"
    message = str(detail["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    given = detail["input"]
    if isinstance(given, Mapping | BaseModel):
        return f"{name}: {message}" if name else message
    close = ""
    if detail["type"] == "literal_error":
        field = _model_at(model, location[:-1]).model_fields.get(str(location[-1]))
        if field is not None:
            close = nearest(str(given), map(str, get_args(field.annotation)))
    return f"{name}: {given!r} given; {message}{close}"


def _dotted_name(location: Sequence[Any]) -> str:
    name = ""
    for part in location:
        name += f"[{part}]" if isinstance(part, int) else f".{part}"
    return name.lstrip(".")


def _explain_unknown_field(name: str, location: Sequence[Any], model: type[BaseModel]) -> str:
    owner = location[:-1]
    prefix = "".join(f"{part}." for part in owner)
    allowed = [prefix + field for field in _model_at(model, owner).model_fields]
    close = nearest(name, allowed) or nearest(str(location[-1]), field_names())
    return f"unknown field {name!r}{close}; allowed: {', '.join(allowed)}"


def _model_at(model: type[BaseModel], location: Sequence[Any]) -> type[BaseModel]:
    """Return the model of the section that a location leads to."""
    for part in location:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return model
