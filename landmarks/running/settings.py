"""The settings of recognition.py and retrieval.py in sections, typed, with their defaults: a stage takes what it uses.

`recipe.py` puts them together; those of what is made of embeddings are in `answer_settings.py`. A setting is written
there or here and nowhere else: its name, type, default, bounds and help.
"""

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from landmarks.running import values

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_RECIPE = "small-ensemble"
BESIDE = "beside"  # in a work folder: that of the model beside its own
STORES = ("s3://", "gs://")  # object stores, by fsspec
URLS = ("http://", "https://", *STORES)  # where a mirror may be, other than in a folder
UNITS = {"s": 1, "m": 60, "h": 3600}


def _seconds(value: object) -> object:
    """`90m`, `11h`, `11h30m` or a number of seconds."""
    if isinstance(value, str) and re.fullmatch(r"(\d+(\.\d+)?[hms])+", value):
        return sum(float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+)([hms])", value))
    return value


Seconds = Annotated[float, BeforeValidator(_seconds)]


def is_store(url: str) -> bool:
    return url.startswith(STORES)


def _store(value: str) -> str:
    if value and not is_store(value):
        raise ValueError(f"give a URL of {' or '.join(STORES)}")
    return value


def _yes_or_file(value: object) -> object:
    """TOML's true and false, as the command line has them."""
    return {True: "true", False: "", "false": ""}.get(value, value) if isinstance(value, bool | str) else value


class Section(BaseModel, allow_inf_nan=False):
    """Settings of one purpose."""

    # Defaults are validated too: a 0 that is read again as 0.0 would be another setting to a digest.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    free: ClassVar[bool] = False  # they may differ between two runs in one work folder: no model or features change


class RunSettings(Section):
    """where a run works, and how"""

    free = True

    recipe: str = Field(DEFAULT_RECIPE, title="NAME|FILE")
    """the settings to start from: a name in recipes/ or a TOML file; a work folder's own where it has one"""
    work: Path = Field(Path("work"), exclude=True)
    """folder for everything that is made; a run that was stopped goes on from what it holds. A,B: several trained ones,
    whose embeddings are put side by side; what is made goes to A+B"""
    models: list[Path] = []
    """several trained work folders, whose embeddings are put side by side; `--work A,B` sets it"""
    model_weights: list[Annotated[float, Field(gt=0)]] = []
    """what the embeddings of several models, or of this one and the one beside it, are multiplied by: similarities
    count by the square; all alike where not given"""
    beside: str = Field("", title="NAME|FILE")
    """a recipe whose model is made too, of the same photos, in WORK/beside: what both make of a photo stands side by
    side; none where empty"""
    time_limit: Seconds = Field(0, ge=0, le=1e9, exclude=True, title="TIME")
    """end cleanly after this time (seconds, or like 11h30m), so that the same command goes on later; 0: no limit"""
    submission: Annotated[str, AfterValidator(values.csv)] = Field("", exclude=True, title="FILE.csv")
    """write the submission here too, under the name that a competition wants, like submission.csv"""
    shards: Annotated[str, AfterValidator(values.span)] = Field("", exclude=True, title="FROM:TO")
    """embed only these shards of each split, like 0:17 (17 is left out), so that several runs share the work"""
    devices: Annotated[str, BeforeValidator(str), AfterValidator(values.devices)] = Field(
        "1", exclude=True, title="N|all"
    )
    """GPUs or TPU cores of this machine that share each batch, in training and embedding, on JAX (KERAS_BACKEND=jax)"""
    hosts: Annotated[str, AfterValidator(values.hosts)] = Field("", exclude=True, title="auto|HOST:PORT,COUNT,NUMBER")
    """hosts that train one model together, with all their devices, on JAX: where host 0 can be reached, how many they
    are, and which one this is, like 10.0.0.1:1234,2,0; auto: as Slurm, Open MPI or a TPU pod tells; empty: this one
    alone"""
    store: Annotated[str, AfterValidator(_store)] = Field("", exclude=True, title="URL")
    """where a copy of the work folder is kept, s3://... or gs://...; `--work URL` sets it, and works in a folder of
    that name here"""
    cluster: str = Field("", exclude=True, title="auto|ADDRESS")
    """a Ray cluster that embeds the shards, finds their local features, and searches exactly, each device a part of the
    index: its address, or auto for the one that this machine is part of, or else all devices of this machine; empty:
    this process alone"""
    checkpoint_minutes: float = Field(1, ge=0)
    """minutes between checkpoints, within a mini-epoch too; 0: one after each mini-epoch"""
    track: Literal["none", "mlflow"] = "none"
    """note the run in a tracker of experiments too, when a script ends: in MLflow, at MLFLOW_TRACKING_URI or else in
    the folder mlruns; TensorBoard finds WORK/logs without it"""
    index_parts: int = Field(6, ge=1)
    """the index, or the train photos, are searched in so many parts, one in memory at a time"""
    search: Literal["exact", "ivfpq"] = "exact"
    """how the index, and the train photos that name landmarks, are searched; ivfpq: approximately, by the codes of
    product quantization in inverted lists on disk, and then exactly among candidates; for millions of photos"""

    @property
    def folders(self) -> list[Path]:
        """The work folders of the models: this one's and that of the one beside it, or those of several."""
        return self.models or [self.work, *([self.work / BESIDE] if self.beside else [])]

    @property
    def features(self) -> Path:
        """The folder of the features files that photos are searched by, for each split one."""
        beside_its_own = len(self.folders) > 1 and not self.models
        return self.work / ("together" if beside_its_own else "features")

    @model_validator(mode="after")
    def _fit_together(self) -> "RunSettings":
        if self.model_weights and len(self.model_weights) != len(self.folders):
            raise ValueError(
                f"{len(self.model_weights)} --model-weights for {len(self.folders)} models: as many as --work A,B has, "
                "two with --beside; [] for all alike"
            )
        if self.work.resolve() == ROOT / "bottleneck":
            # Its import fails then, in every script: it looks for its optional package of this name.
            raise ValueError(
                "pandas would take the folder `bottleneck` beside the scripts for a package: another --work"
            )
        return self


class MirrorSettings(Section):
    """where the photos are"""

    free = True

    mirror: Annotated[str, AfterValidator(values.mirror)] = Field("sample", title="URL|FOLDER")
    """where the photos are: `sample` (built in), a URL (http://, https://, s3://, gs://), or a folder"""
    ahead: int = Field(1, ge=0)
    """shards to download at once while one is in use; at most this + 1 are on disk"""
    cache: str = Field("", title="FOLDER")
    """keep train photos here, decoded to `image_size`, so that epochs after the first neither download nor decode; not
    with triplets"""
    cache_size: float = Field(20, gt=0)
    """gigabytes that the cache may take; shards that find no room are read anew in each epoch"""
    strict_md5: bool = False
    """refuse a shard whose md5 differs from the published one after a second download, even if the tar reads whole"""
    patience: Seconds = Field(30 * 60, ge=0, le=10_000_000, title="TIME")
    """how long a mirror at a URL may be away before the run ends (seconds, or like 2h), once it has answered"""
    strict: bool = False
    """end the run at the first damaged shard, instead of using the photos that lie whole before the fault"""
    max_damaged: float = Field(0.05, ge=0, le=1)
    """part of a split's shards that may be damaged, beyond one, before the run ends"""
    solution: str = Field("", exclude=True, title="FILE")
    """a solution to score by, .csv or .csv.gz, instead of the mirror's own"""


class PhotoSettings(Section):
    """which photos are learnt from"""

    clean: Annotated[str, BeforeValidator(_yes_or_file)] = Field("", title="true|FILE")
    """learn only from clean photos: true for the mirror's own train_clean.csv, or a file that cleaning.py wrote"""
    classifier: str = Field("", title="FILE")
    """a scene classifier, .keras or .onnx: learn from what cleaning.py keeps with it, WORK/train_clean.csv"""
    categories: str = Field("", title="FILE")
    """its scenes, one a line, 1 for indoor and 2 for outdoor: `/a/airfield 2`"""
    min_images: int = Field(2, ge=1)
    """learn only landmarks with at least this many train photos"""
    exclude: list[int] = []
    """landmark ids not to learn"""

    @model_validator(mode="after")
    def _fit_together(self) -> "PhotoSettings":
        if bool(self.classifier) != bool(self.categories):
            raise ValueError("--classifier and --categories go together")
        return self


class ModelSettings(Section):
    """the network: what it sees of a photo, its backbone, embedding and head"""

    backbone: str = Field("EfficientNetLite0", title="NAME|FILE")
    """EfficientNetLite0, any model in keras.applications, a preset of KerasHub (hub:dinov2_small, hub:kaggle://..., its
    folder hub:DIR, hf:USER/MODEL), or what maps photos of 0 to 255 to a feature map or a vector: FILE.keras; FILE.onnx
    or the folder of a SavedModel, as DELG's, in which nothing is trained: --loss none"""
    weights: str = Field("imagenet", title="NAME|FILE")
    """the backbone's first weights: imagenet (of a preset its own), none, or a file: .keras (a model of this project),
    .h5 (of keras.applications, with a head or without) or .weights.h5; a whole network of others stands for
    `backbone`"""
    pooling: Literal["max", "average", "gem", "flatten", "token"] = "average"
    """how the feature map, or a transformer's patch tokens, becomes the embedding; gem: generalized mean with a learned
    power; flatten: all of it; token: the class token instead"""
    embedding_size: int = Field(0, ge=0)
    """dimensions of a dense layer after the pooling, which is the embedding then; 0: no such layer"""
    embedding_layer: Literal["batch_norm", "relu", "affine"] = "batch_norm"
    """what follows in that layer; affine: nothing does, but L2-normalisation goes before it, as before a whitening"""
    freeze: int = Field(0, ge=0)
    """first layers of the backbone that are not trained; of a transformer the patch embedding is one, each block is"""
    image_size: int = Field(256, ge=32, le=2048)
    """photos are squashed to a square of this side"""
    crop: float = Field(0.75, gt=0, le=1)
    """side of the random square that is trained on, as a part of image_size; 1: all. Predictions see the whole photo"""
    crop_area: float = Field(0.0, ge=0, le=1)
    """above 0: random resized crops, of this part of a photo's area or more and sides of 3:4 to 4:3, become squares of
    the side that crop says"""
    flip: bool = True
    """mirror half of the photos while training"""
    shear: float = Field(0.0, ge=0, le=1)
    """largest shear while training, as a part of the side"""
    zoom: float = Field(0.0, ge=0, lt=1)
    """largest change of size while training, as a part of it"""
    dropout: float = Field(0.0, ge=0, lt=1)
    """share of the embedding that is dropped before the head while training"""
    freeze_batch_norm: bool = True
    """keep a pretrained backbone's batch normalisation as it is: training is twice as fast on a CPU"""
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"
    """what the layers compute in; mixed_float16 suits a GPU with tensor cores"""
    loss: Literal["softmax", "arcface", "triplet", "none"] = "softmax"
    """softmax: cross-entropy over the landmarks; arcface: with sub-centres and a margin for each landmark; triplet: the
    hardest ones of batches of similar landmarks, which need the mirror in a folder; none: nothing is learnt"""
    subcentres: int = Field(3, ge=1)
    """ArcFace's centres of each landmark; the nearest one counts"""
    head_parts: int = Field(1, ge=1)
    """ArcFace's landmarks are kept in so many equal parts, which --devices, that many or fewer, share: for a head that
    is too large for one"""
    sampled_classes: float = Field(1.0, gt=0, le=1)
    """share of the landmarks that ArcFace compares a batch with, its own and others drawn anew for each step; 1: all"""

    @property
    def crop_size(self) -> int:
        """Side of the random crop in pixels; 0 for none."""
        return round(self.crop * self.image_size) if self.crop < 1 else 0

    @model_validator(mode="after")
    def _fit_together(self) -> "ModelSettings":
        if self.pooling == "flatten" and self.crop < 1:
            raise ValueError("flatten needs photos of one size: --crop 1")
        if self.loss == "none" and self.embedding_size:
            raise ValueError("--loss none leaves all weights as they are, random ones too: --embedding-size 0")
        if self.loss != "arcface" and (self.head_parts > 1 or self.sampled_classes < 1):
            raise ValueError("head_parts and sampled_classes are ArcFace's: --loss arcface")
        return self


class TrainingSettings(Section):
    """how the network learns"""

    bottleneck_epochs: int = Field(0, ge=0)
    """epochs that train the layers after the backbone alone, on its features, which are kept on disk; 0: none"""
    epochs: int = Field(8, ge=1)
    """times that every train shard is seen; one shard is one mini-epoch"""
    batch_size: int = Field(32, ge=1)
    """photos in a step"""
    learning_rate: float = Field(3e-4, gt=0)
    """the learning rate at the start, after the warm-up"""
    learning_rate_steps: dict[Annotated[float, Field(gt=0)], float] = {}
    """learning rate from a part of the run on, like 0.34=1e-4, to the nearest mini-epoch; or from a mini-epoch on, like
    170=1e-4"""
    schedule: Literal["steps", "cosine"] = "cosine"
    """steps: as learning_rate_steps says; cosine: falls to 0 at the end"""
    warm_up: float = Field(0.0, ge=0)
    """mini-epochs in which the learning rate rises from 0"""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """the learning rate of each block of the backbone is that of the one above it times this, and that of the last one
    the head's; 1: all learn alike"""
    optimizer: Literal["adam", "sgd"] = "adam"
    """adam, or sgd with momentum 0.9"""
    accumulate: int = Field(1, ge=1)
    """steps whose gradients are averaged before the weights change"""
    keep_best: bool = False
    """keep the model of the mini-epoch with the best GAP of the nearest held-out photo, not the last one"""
    compare_start: bool = True
    """after training compare it, on held-out photos, with the pretrained weights as they came, whitened; where it has
    gained nothing these are kept, unless the head is needed. Not so where another model stands beside it"""
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    """share of the target that is spread over all landmarks"""
    scale: float = Field(16.0, gt=0)
    """what ArcFace multiplies cosines by"""
    margin_smallest: float = Field(0.05, ge=0, le=1.5)
    """ArcFace's margin of the most frequent landmark, in radians"""
    margin_largest: float = Field(0.5, ge=0, le=1.5)
    """and of the rarest one"""
    class_weights: bool = False
    """let a photo of a landmark with n train photos count by 1 / log(1 + n)"""
    classes_per_batch: int = Field(12, ge=2)
    """landmarks in a batch of triplets"""
    photos_per_class: int = Field(8, ge=2)
    """photos of each of them"""
    subspaces: int = Field(20, ge=1)
    """groups of similar landmarks, found by k-means, that such batches are drawn from"""
    validation_shards: int = Field(1, ge=0)
    """train shards, the last ones, held out to validate on"""
    validation_images: int = Field(2048, ge=1)
    """photos of the held-out shards to validate on, at most; they stay in memory"""
    seed: int = Field(0, ge=0, lt=2**31)
    """of the sample, the shuffling, the augmentation and the first weights"""

    def stage(self, epochs: int, **settings: object) -> "TrainingSettings":
        """The settings of a short training of its own within this one: Adam at its usual 1e-3."""
        usual = {
            "optimizer": "adam", "learning_rate": 1e-3, "schedule": "steps", "learning_rate_steps": {}, "warm_up": 0.0,
            "accumulate": 1, "keep_best": False, "layer_decay": 1.0,
        }  # fmt: skip
        return self.model_copy(update={"epochs": epochs, **usual, **settings})

    @model_validator(mode="after")
    def _fit_together(self) -> "TrainingSettings":
        if self.learning_rate_steps and self.schedule != "steps":
            raise ValueError(f"learning_rate_steps are for --schedule steps, not {self.schedule}")
        if self.keep_best and not self.validation_shards:
            raise ValueError("keep_best needs photos to judge by: --validation-shards 1 or more")
        return self


class EmbeddingSettings(Section):
    """photos to embeddings"""

    free = True

    mirrored: bool = True
    """predict each photo and its mirror image, and take the mean; takes twice as long"""
    engine: Literal["keras", "openvino", "openvino-bf16"] = "keras"
    """what runs the network: Keras' back end; or OpenVINO, which is faster on a CPU: in float32 the embeddings are the
    same, in bfloat16 it is faster still and a little worse"""
    scales: list[Annotated[float, Field(gt=0, le=4)]] = Field([1.0], min_length=1)
    """sides at which a photo is embedded, as parts of image_size, like 1,0.71,1.41; takes as long as their squares"""
    scale_pooling: Literal["mean", "gem", "side_by_side"] = "mean"
    """how the embeddings of the scales become one: their mean, their generalized mean with power 3, or all of them"""
    inner_layers: list[str] = []
    """layers of the backbone whose maps are averaged too, beside the embedding, like blocks_10_add,blocks_14_add: what
    the net knows at less depth, where details are; whitening then tells which of it counts. Takes no longer"""
    whitening: Literal["none", "pca", "lda", "learned"] = "none"
    """scale the directions of the embeddings, after training, by how much they vary; pca: over all train photos; lda:
    over those of one landmark; learned: over the pairs of one landmark"""
    dimensions: int = Field(0, ge=0)
    """dimensions that whitening leaves, those that tell most; 0: all"""
    whitening_photos: int = Field(50_000, ge=2)
    """train photos that whitening is found from, at most, to the nearest shard; it takes some GB for each 100,000"""

    def sizes(self, image_size: int) -> list[int]:
        """The sides in pixels."""
        return [round(scale * image_size) for scale in self.scales]

    @model_validator(mode="after")
    def _fit_together(self) -> "EmbeddingSettings":
        if self.dimensions and self.whitening == "none":
            raise ValueError("--whitening none leaves all dimensions: --dimensions 0; or --whitening pca, lda, learned")
        return self
