"""The components of a recipe: one pydantic model for each part of a run, with its keys and their defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy and PyTorch both take


def _as_text(value: Any) -> Any:
    """Of what YAML makes of an unquoted text, a whole number still says how it was written; others do not."""
    if isinstance(value, bool | float):
        kind = "a truth value" if isinstance(value, bool) else "a number"
        raise ValueError(f"YAML reads this text as {kind} ({value}); put it in quotes")
    return str(value) if isinstance(value, int) else value


AUTO = -1  # stands for `auto` in a number that a run chooses for itself, so that the key stays a number


def _or_auto(kind: type[int] | type[float], least: float) -> tuple[BeforeValidator, PlainSerializer]:
    """Let a number of at least `least` also be written as ``auto``, which is kept as `AUTO`."""

    def read(value: Any) -> Any:
        if value == "auto":
            return AUTO
        if isinstance(value, bool) or (isinstance(value, int | float) and value < least):
            raise ValueError(f"give a number of at least {least:g}, or auto, not {value}")
        return value

    def write(value: float) -> Any:
        return "auto" if value == AUTO else kind(value)

    return BeforeValidator(read), PlainSerializer(write)


_EPOCHS, _FIT_EPOCHS = _or_auto(int, 1), _or_auto(int, 0)
_RATE = _or_auto(float, 1e-12)
Epochs = Annotated[int, *_EPOCHS]
FitEpochs = Annotated[int, *_FIT_EPOCHS]
Rate = Annotated[float, *_RATE]

Text = Annotated[str, BeforeValidator(_as_text)]  # may be written without quotes where it is a whole number


class Component(BaseModel):
    """Base of every part of a recipe: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FitRecipe(Component):
    """How a model is first fitted to the user's data with hard labels (the teacher, or a new head)."""

    epochs: FitEpochs = AUTO  # auto: as many as make about 400 steps, from 4 to 20
    patience: Annotated[int, Field(ge=1)] | None = 3  # stop after so many epochs without a better val
    lr: Rate = AUTO  # auto: 3e-4 for pretrained weights, 3e-3 for random ones
    weight_decay: NonNegative = 0.01
    label_smoothing: Fraction = 0.0
    use_mixup: bool = (
        False  # apply the view's mixup and cutmix here too; off: soft targets want a sharp teacher
    )


# YAML 1.1 reads a bare no as false
Fit = Annotated[
    FitRecipe | Literal["auto", "probe", "no"], BeforeValidator(lambda fit: "no" if fit is False else fit)
]


class TeacherRecipe(Component):
    """The teacher."""

    model: Text = "tf_efficientnet_lite2"  # NAME@WEIGHTS
    others: tuple[Text, ...] = ()  # further teachers; the student learns from the mean of their probabilities
    resolution: Annotated[int, Field(ge=16)] | Literal["own", "best"] = "own"  # pixels; best: probed on val
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = (
        None  # of the evaluation crop; null: the model's own
    )
    # auto: a new head is a probe, then all layers are trained; probe: the probe alone, for any head; or {epochs, lr...}
    fit: Fit = "auto"


class StudentRecipe(Component):
    """The student."""

    model: Text = "tf_efficientnet_lite0"  # NAME@WEIGHTS
    resolution: Annotated[int, Field(ge=16)] | Literal["own"] = "own"  # pixels
    crop_pct: Annotated[float, Field(gt=0, le=1)] | None = (
        None  # of the evaluation crop; null: the model's own
    )
    dropout: Fraction | None = None  # in the head; null: the model's own
    head_fit: Fit = (
        "auto"  # auto: a new head is a probe; probe: any head is; {epochs, lr...}: trained further, alone
    )


class DataRecipe(Component):
    """The images, and how they are split. Sources are named KIND:WHERE."""

    train: Text = "digits"
    val: Text | None = (
        None  # for model selection; null: the train source's own val part, else val_fraction of train
    )
    test: Text | None = (
        None  # for the final evaluation; null: its own test or val part, else test_fraction of train
    )
    unlabelled: Text | None = None  # further images, used for the teacher's targets only
    labels_per_class: Annotated[int, Field(ge=1)] | None = (
        None  # training images of each class whose labels are used; the others count as unlabelled; null: all
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1  # stratified
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2  # stratified
    split_seed: Seed = 0
    limit: Annotated[int, Field(ge=1)] | None = None  # largest number of images of each part
    max_bad_images: Annotated[int, Field(ge=0)] = 10  # the run stops at more undecodable images than this
    # leave out training images whose files are equal, byte for byte, to those of val or test images
    drop_duplicates: bool = True
    # larger images are refused as decompression bombs, in 10^6 pixels; null: 89.5, Pillow's limit
    max_megapixels: Positive | None = None
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"  # loader processes
    cache: bool = True  # keep decoded and resized images on disk, so that no epoch decodes a JPEG
    cache_mb: Positive = 20_000  # upper bound on that, in MB (10^6 bytes)


class ViewRecipe(Component):
    """Augmentation. A view is a pure function of (image, seed); every entry can be switched off."""

    crop_scale: tuple[Share, Share] = (
        0.35,
        1.0,
    )  # area of the crop, less where crop_ratio demands it; (1, 1): all
    crop_ratio: tuple[Positive, Positive] = (0.75, 4 / 3)  # width over height
    flip: Fraction = 0.5  # probability
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0  # degrees, uniformly to either side
    blur: Fraction = 0.0  # probability of a Gaussian blur
    greyscale: Fraction = 0.0  # probability
    colour: Annotated[float, Field(ge=0, lt=1)] = 0.0  # strength of brightness, contrast, saturation jitter
    cutout: Fraction = 0.0  # probability of one erased square
    mixup: NonNegative = 0.0  # alpha of the Beta distribution; 0: off
    cutmix: NonNegative = 0.0  # alpha of the Beta distribution; 0: off
    mix_probability: Fraction = 1.0  # share of batches mixed, when mixup or cutmix is on

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _ascending(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if bounds[0] > bounds[1]:
            raise ValueError(f"give the lower bound first, not {list(bounds)}")
        return bounds


class LossRecipe(Component):
    """What the student is asked to match: weight * loss + label_weight * cross-entropy, or a list of terms."""

    name: str = "kl"
    # of the soft targets; auto: of kl by the teacher's entropy, else the loss's own; null: the loss's own
    temperature: Positive | Literal["auto"] | None = "auto"
    # divides the teacher's logits before anything else; auto: the one at which the teacher is calibrated on val
    teacher_temperature: Rate = AUTO
    weight: NonNegative = 1.0
    label_weight: NonNegative = 0.5
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the hard labels
    options: dict[str, float] = Field(default_factory=dict)  # the loss's own, e.g. {beta: 8} for dkd
    terms: tuple[dict[str, dict[str, Any] | None], ...] = ()  # in place of all of the above
    two_heads: bool = (
        False  # one head learns from the labels, one from the teacher; a mixture of both is kept
    )

    @property
    def distils_with(self) -> tuple[str, ...]:
        """The names of all terms but the labels' cross-entropy."""
        named = [name for term in self.terms for name in term] or ([self.name] if self.weight else [])
        return tuple(name for name in named if name != "cross_entropy")

    @model_validator(mode="after")
    def _terms_say_all(self) -> LossRecipe:
        plain = LossRecipe.model_construct()
        also = [
            key
            for key in type(self).model_fields
            if key not in {"terms", "two_heads", "teacher_temperature"}
            and getattr(self, key) != getattr(plain, key)
        ]
        if self.terms and also:
            raise ValueError(
                f"terms are all that is minimised: leave loss.{also[0]} out, or set it in a term"
            )
        return self


class TrainRecipe(Component):
    """The training loop."""

    epochs: Epochs = AUTO  # auto: as many as make about 800 steps, from 6 to 40
    # stop after so many epochs without a better val; control and student may then have unequal numbers of steps
    patience: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=2)] = 64  # over all processes
    labelled_share: Share | None = None  # of each batch, where some images have no label; null: as they come
    optimizer: Text = "adamw"  # any of timm's
    lr: Rate = AUTO  # auto: 3e-4 for pretrained weights, 3e-3 for random ones
    min_lr: NonNegative = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_epochs: NonNegative = 0.5
    momentum: Fraction = 0.9  # for optimizers that have it
    weight_decay: NonNegative = 0.05
    clip_grad: Positive | None = None  # largest gradient norm
    from_scratch: bool = False  # start from random weights, not from the pretrained ones
    frozen_batchnorm: bool = False  # keep the running statistics of the start unchanged
    l2_sp: NonNegative = 0.0  # decay towards the starting weights (Li 2018)
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # lr factor from a layer to the one below
    head_warmup_epochs: Annotated[int, Field(ge=0)] = (
        0  # epochs at the beginning in which only the head learns
    )
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.995  # decay per step of the moving average; 0: none
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: the faster of a few measured steps
    checkpoint_minutes: NonNegative = 5.0  # longest time between two checkpoints; each epoch has one
    max_bad_steps: Annotated[int, Field(ge=0)] = (
        20  # the run stops at more steps than this whose loss is not finite
    )
    seed: Seed = 0


class SelectionRecipe(Component):
    """Which candidate is kept. It is selected on val, and the start is always a candidate."""

    metric: Literal["top1", "nll"] = "top1"
    interpolate: bool = True  # WiSE-FT, between the start and each trained candidate
    soup: bool = True  # greedy average of the candidates


class PreflightRecipe(Component):
    """Checks before the first step."""

    # continue with a teacher that is near chance, worse than the student, or on val not better than the control
    allow_weak_teacher: bool = False
    probe_resolutions: bool = False  # also measure both models at neighbouring resolutions


class TargetsRecipe(Component):
    """How the teacher's outputs are computed and kept."""

    mode: Literal["live", "cached"] = "live"
    views: Annotated[int, Field(ge=1)] | None = None  # distinct views per image; null: one per epoch
    top_k: Annotated[int, Field(ge=1)] | None = (
        None  # keep only the largest k probabilities, and the sum of the others
    )
    flip: bool = False  # the teacher's answer is the mean over the view and its mirror image
    resolutions: tuple[
        Annotated[int, Field(ge=16)], ...
    ] = ()  # pixels; and over the view at these, such as [160]
    folds: Annotated[int, Field(ge=2)] | None = (
        None  # each training image is answered by one of so many probes that has not seen it; null: by the teacher
    )
    directory: Text | None = None  # of targets and decoded images, shared between runs; null: the run's own


class ExportRecipe(Component):
    """The deployed files."""

    enabled: bool = False
    int8: bool = True
    teacher: bool = False  # export the teacher too, so that files are compared with files of the same kind
    max_drop: NonNegative = (
        1.0  # largest accepted loss of top-1 of a file against PyTorch on test, in percentage points
    )
