"""The components of a recipe: one pydantic model for each part of a run, with its keys and their defaults.

The text below a key is its meaning and its unit, and the only place where they are written: `tutelage recipe`, a new
recipe's comments and the JSON schema are made from it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tutelage.core.values import (
    AUTO,
    BatchSize,
    Component,
    Epochs,
    FitEpochs,
    Fraction,
    NonNegative,
    Part,
    Pixels,
    Positive,
    Rate,
    Seed,
    Share,
    TestedRate,
    Text,
)


class FitRecipe(Component):
    """How a model is first fitted to the user's data with hard labels (the teacher, or a new head)."""

    epochs: FitEpochs = AUTO
    """Passes over the labelled training images. auto: as many as make about 400 steps, from 4 to 20."""
    patience: Annotated[int, Field(ge=1)] | None = 3
    """Stop after so many epochs without a better val; null: never."""
    lr: Rate = AUTO
    """Learning rate after warm-up. auto: 3e-4 for pretrained weights, 3e-3 for random ones."""
    weight_decay: NonNegative = 0.01
    """Weight decay of the optimizer."""
    label_smoothing: Fraction = 0.0
    """Share of each label's weight that is spread over all classes."""
    use_mixup: bool = False
    """Apply view.mixup and view.cutmix here too. Off by default, since soft targets want a sharp teacher."""


# YAML 1.1 reads a bare no as false
Fit = Annotated[
    FitRecipe | Literal["auto", "probe", "no"],
    BeforeValidator(
        lambda fit: "no" if fit is False else fit,
        json_schema_input_type=FitRecipe | Literal["auto", "probe", "no", False],
    ),
]


class TeacherRecipe(Component):
    """The teacher, the large model that the student learns from."""

    model: Text = "tf_efficientnet_lite2"
    """Model, as NAME@WEIGHTS or KIND:WHERE."""
    others: tuple[Text, ...] = ()
    """Further teachers; the student learns from the mean of the probabilities of all."""
    resolution: Pixels | Literal["own", "best"] = "own"
    """Height and width of the input, in pixels. own: the model's own; best: the best of its neighbours on val."""
    crop_pct: Share | None = None
    """Share of the resized image's side that the evaluation crop keeps; null: the model's own."""
    fit: Fit = "auto"
    """Fit to the data before distilling. auto: a new head is a linear probe, then all layers are trained; probe: the
    probe alone, for any head; no: none; or a mapping with keys of the fit, such as {epochs: 5}. With auto, a head that
    has the data's classes among others is fitted too, and is replaced by a probe where that is better on val."""


class StudentRecipe(Component):
    """The student, the small model that is trained."""

    model: Text = "tf_efficientnet_lite0"
    """Model, as NAME@WEIGHTS or KIND:WHERE."""
    resolution: Pixels | Literal["own"] = "own"
    """Height and width of the input, in pixels. own: the model's own."""
    crop_pct: Share | None = None
    """Share of the resized image's side that the evaluation crop keeps; null: the model's own."""
    dropout: Fraction | None = None
    """Rate of the dropout in the head; null: the model's own."""
    all_classes: bool = False
    """Keep all classes of teacher and student where their heads have those of the data and others, such as ImageNet's;
    false: those of the data alone."""
    head_fit: Fit = "auto"
    """Fit of the head alone, before distilling. auto: a new head is a linear probe; probe: any head is; no: none; or a
    mapping with keys of the fit, such as {epochs: 5}: it is trained further, alone."""


class DataRecipe(Component):
    """The images, and how they are split. A source is a path, or KIND:WHERE."""

    train: Text = "digits"
    """Source of the training images."""
    val: Text | None = None
    """Source of the images for model selection; null: the train source's own val part, else val_fraction of train."""
    test: Text | None = None
    """Source of the images for the final evaluation; null: the train source's own test or val part, else
    test_fraction of train."""
    unlabelled: Text | None = None
    """Source of further images, used for the teacher's targets only; null: none."""
    teacher: Text | None = None
    """Source of the labelled images that the teacher is fitted to; null: the training images."""
    labels_per_class: Annotated[int, Field(ge=1)] | None = None
    """Training images of each class whose labels are used; the others count as unlabelled. null: all."""
    val_fraction: Part = AUTO
    """Share of the training images that is taken for val, stratified by class. auto: a tenth; where that is fewer than
    300 images, 300 of them, but at most a fifth."""
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training images that is taken for test, stratified by class."""
    split_seed: Seed = 0
    """Seed of the splits; train.seed does not change them."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Largest number of images of each part, stratified by class; null: all."""
    val_limit: Annotated[int, Field(ge=1)] | None = 10_000
    """Largest number of images for model selection, stratified by class: val is evaluated more than a hundred times.
    Images of a shared source that val leaves are for training. null: no limit."""
    max_bad_images: Annotated[int, Field(ge=0)] = 10
    """The run stops at more undecodable images than this."""
    drop_duplicates: bool = True
    """Leave out training images whose files are equal, byte for byte, to those of val or test images."""
    exclude: Text | None = None
    """Text file with the path of an image on each line, as `tutelage data --fix` writes it: these are left out of
    all parts but test, and a test image is refused. null: none."""
    max_megapixels: Positive | None = None
    """Larger images are refused as decompression bombs, in 10^6 pixels; null: 89.5, Pillow's limit."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Number of processes that load images; 0: the main process loads them."""
    cache: bool | Literal["raw", "packed"] = True
    """Keep images on disk, resized to what the models need. raw: decoded, so that no epoch decodes a JPEG; packed: as
    small JPEGs in a few files; true: raw where that fits into cache_mb, else packed; false: read the files again."""
    cache_mb: Positive = 20_000
    """Largest size of these images on disk, in MB (10^6 bytes)."""


class ViewRecipe(Component):
    """Augmentation. A view is a pure function of (image, seed); every entry can be switched off."""

    crop_scale: tuple[Share, Share] = (0.35, 1.0)
    """Area of the random crop, from and to, as shares of the image; less where crop_ratio demands it. [1, 1]: all."""
    crop_ratio: tuple[Positive, Positive] = (0.75, 4 / 3)
    """Width over height of the random crop, from and to."""
    flip: Fraction = 0.5
    """Probability of a mirror image."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest rotation to either side, in degrees; uniformly distributed."""
    blur: Fraction = 0.0
    """Probability of a Gaussian blur."""
    greyscale: Fraction = 0.0
    """Probability of a greyscale image."""
    colour: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Strength of random changes of brightness, contrast and saturation."""
    cutout: Fraction = 0.0
    """Probability of one erased square."""
    mixup: NonNegative = 0.0
    """Alpha of mixup's Beta distribution; 0: off."""
    cutmix: NonNegative = 0.0
    """Alpha of CutMix's Beta distribution; 0: off."""
    mix_probability: Fraction = 1.0
    """Share of batches that are mixed, where mixup or cutmix is on."""

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _ascending(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if bounds[0] > bounds[1]:
            raise ValueError(f"give the lower bound first, not {list(bounds)}")
        return bounds


class LossRecipe(Component):
    """What the student is asked to match: weight * loss + label_weight * cross-entropy, or a list of terms."""

    name: str = "kl"
    """Loss between the teacher's and the student's outputs; `tutelage losses` lists all."""
    temperature: Positive | Literal["auto"] | None = "auto"
    """Temperature of the soft targets. auto: of kl by the teacher's entropy, else the loss's own; null: the loss's
    own."""
    teacher_temperature: Rate = AUTO
    """Divides the teacher's logits before anything else. auto: the one at which the teacher is calibrated on val."""
    weight: NonNegative = 1.0
    """Factor of the loss."""
    label_weight: NonNegative = 0.5
    """Factor of the cross-entropy with the hard labels."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each hard label's weight that is spread over all classes."""
    class_weights: Literal["none", "balanced", "effective"] = "none"
    """Weights of the classes in the labels' cross-entropy of control and student, from the labelled training images.
    balanced: inverse to the number of a class's images; effective: to their effective number (Cui 2019). The teacher's
    fit and linear probes have none."""
    options: dict[str, float] = Field(default_factory=dict)
    """The loss's own settings, such as {beta: 8} for dkd."""
    terms: tuple[dict[str, dict[str, Any] | None], ...] = ()
    """List of terms, in place of all of the above, such as [{kl: {temperature: 2}}, {cross_entropy: {weight: 0.5}}]."""
    two_heads: bool = False
    """One head learns from the labels, one from the teacher; a mixture of both is kept."""

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
            if key not in {"terms", "two_heads", "teacher_temperature", "class_weights"}
            and getattr(self, key) != getattr(plain, key)
        ]
        if self.terms and also:
            raise ValueError(
                f"terms are all that is minimised: leave loss.{also[0]} out, or set it in a term"
            )
        return self


class TrainRecipe(Component):
    """The training loop of control and student."""

    epochs: Epochs = AUTO
    """Passes over the training images. auto: as many as make about 800 steps, from 16 to 40."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many epochs without a better val; control and student may then have unequal numbers of steps.
    null: never."""
    batch_size: BatchSize = 64
    """Images of a batch, over all processes. auto: 64, halved until the steps of all trainings fit into memory; never
    more than 64, since the learning rate is not adapted to the batch."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Equal parts of a batch that are trained one after the other, so that the memory of a part suffices; the step is
    that of the whole batch, but each part has BatchNorm statistics of its own."""
    labelled_share: Share | None = None
    """Share of labelled images in each batch of the student, where some images have no label; null: as they come."""
    optimizer: Text = "adamw"
    """Optimizer, any of timm's."""
    lr: TestedRate = AUTO
    """Learning rate after warm-up, of control and student. auto: 3e-4 for pretrained weights, 3e-3 for random ones;
    range: by a range test (Smith 2017), 100 steps with rising rates on a copy of the student with hard labels."""
    min_lr: NonNegative = 0.0
    """Learning rate at the end of the schedule, where that is cosine or linear."""
    schedule: Literal["cosine", "linear", "constant", "multistep"] = "cosine"
    """How the learning rate falls after warm-up. multistep: at each of the milestones it is divided by 10."""
    milestones: tuple[Positive, ...] = ()
    """Epochs after which the learning rate is divided by 10, with schedule multistep, such as [150, 180, 210]."""
    warmup_epochs: NonNegative = 0.5
    """Epochs at the beginning in which the learning rate rises to lr."""
    momentum: Fraction = 0.9
    """Momentum, for optimizers that have it."""
    weight_decay: NonNegative = 0.05
    """Weight decay of the optimizer."""
    clip_grad: Positive | None = None
    """Largest norm of the gradient; null: not clipped."""
    from_scratch: bool = False
    """Start from random weights, not from the pretrained ones."""
    frozen_batchnorm: bool = False
    """Keep the running statistics of the start unchanged."""
    l2_sp: NonNegative = 0.0
    """Strength of the decay towards the starting weights (Li 2018); 0: none."""
    layer_decay: Share = 1.0
    """Factor of the learning rate from a layer to the one below."""
    head_warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs at the beginning in which only the head learns."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.995
    """Decay of the moving average of the weights (EMA), for each step; 0: none."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the training. auto: the faster one of fp32 and bf16 in a few measured steps. fp16 scales the loss,
    and is for CUDA GPUs without bf16 (T4, V100)."""
    sync_batchnorm: bool = False
    """With several processes on GPUs, BatchNorm normalises by the batch of all processes."""
    deterministic: bool = False
    """On a GPU, use algorithms that give the same result each time, which are slower; an operation that has none stops
    the run."""
    checkpoint_minutes: NonNegative = 5.0
    """Longest time between two checkpoints, in minutes; each epoch has one."""
    max_bad_steps: Annotated[int, Field(ge=0)] = 20
    """The run stops at more steps than this whose loss is not finite."""
    seed: Seed = 0
    """Seed of new heads, views and the order of images."""

    @model_validator(mode="after")
    def _has_equal_parts(self) -> TrainRecipe:
        if self.accumulate == 1:
            return self
        if self.batch_size == AUTO:
            raise ValueError(
                "accumulate: batch_size=auto may choose a batch that has no equal parts; give a number, such as "
                f"train.batch_size={8 * self.accumulate}"
            )
        if rest := self.batch_size % self.accumulate:
            fitting = self.batch_size + self.accumulate - rest
            raise ValueError(
                f"accumulate={self.accumulate}: a batch of {self.batch_size} images has no equal parts; make "
                f"batch_size a multiple of it, such as train.batch_size={fitting}"
            )
        return self

    @model_validator(mode="after")
    def _has_milestones(self) -> TrainRecipe:
        if (self.schedule == "multistep") != bool(self.milestones):
            raise ValueError(
                "milestones are the epochs at which schedule=multistep divides the learning rate: give both, such as "
                "train.schedule=multistep train.milestones=[150,180,210], or neither"
            )
        return self


class SelectionRecipe(Component):
    """Which candidate is kept. It is selected on val, and the start is always a candidate."""

    metric: Literal["top1", "nll"] = "top1"
    """Figure on val by which candidates are compared. top1: of those within one standard error of the best, the one
    with the lowest NLL after calibration is kept."""
    interpolate: bool = True
    """Add interpolations between the start and each trained candidate (WiSE-FT, Wortsman 2022)."""
    soup: bool = True
    """Add a greedy average of the candidates (model soup, Wortsman 2022)."""


class PreflightRecipe(Component):
    """Checks before the first step."""

    allow_weak_teacher: bool = False
    """Continue with a teacher that is near chance, worse than the student, or on val not better than the control."""
    probe_resolutions: bool = False
    """Also measure both models at neighbouring resolutions."""


class TargetsRecipe(Component):
    """How the teacher's outputs are computed and kept."""

    mode: Literal["live", "cached"] = "live"
    """live: the teacher runs in each step; cached: its outputs are computed once and kept on disk."""
    views: Annotated[int, Field(ge=1)] | None = None
    """Distinct views of each image; null: one for each epoch."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Keep only so many of the largest probabilities, and the sum of the others; null: all."""
    flip: bool = False
    """The teacher's answer is the mean over the view and its mirror image."""
    resolutions: tuple[Pixels, ...] = ()
    """The teacher's answer is also the mean over the view at these resolutions, in pixels, such as [160]."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Each training image is answered by one of so many probes that has not seen it; null: by the teacher."""
    directory: Text | None = None
    """Directory of targets and decoded images that runs share; null: the run's own."""


class MeasureRecipe(Component):
    """Further figures of the final evaluation."""

    robustness: bool = False
    """Also measure start, control, student and teacher on test images with eight kinds of corruption (noise, blur,
    JPEG...), which takes about eight times as long as the evaluation on test."""


class QadRecipe(Component):
    """The fine-tuning of the student for int8."""

    epochs: Annotated[int, Field(ge=1)] = 2
    """Passes over the training images, with the recipe's batch size and augmentation."""
    lr: Positive = 1e-4
    """Learning rate of AdamW at the beginning; it falls to 0 (cosine)."""


class ExportRecipe(Component):
    """The deployed files."""

    enabled: bool = False
    """Write the student in the formats below, and verify the files."""
    formats: Annotated[
        tuple[Literal["onnx", "openvino", "executorch", "ncnn", "litert", "coreml"], ...], Field(min_length=1)
    ] = (
        "onnx",
        "openvino",
    )
    """Of the files."""
    int8: bool = True
    """Also write files quantised to 8-bit integers."""
    int4: bool = False
    """Also write LiteRT's int8 file with the weights of the last layers in 4 bits, as model-int4.tflite."""
    teacher: bool = False
    """Export the teacher too, so that files are compared with files of the same kind."""
    max_drop: NonNegative = 1.0
    """Largest accepted loss of top-1 of a file against PyTorch on test, in percentage points."""
    web: bool = False
    """Also write a page that classifies photographs in a browser. Its runtime is downloaded from npm (33 MB, once)."""
    qad: QadRecipe | Literal["auto"] | None = None
    """Also fine-tune the student in simulated int8 with the teacher's help (quantisation-aware distillation), such as
    {epochs: 2}; of the int8 files the better ones on val are kept. auto: 2 epochs, where an int8 file loses more than
    max_drop on val; null: quantisation after training alone."""
