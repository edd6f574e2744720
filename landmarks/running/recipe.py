"""A recipe: all sections of settings together, from a TOML file, the work folder and the command line.

A recipe in `recipes/` holds one known-good set. What the command line gives wins over the recipe; what neither gives
has its default. The work folder keeps the settings that its model was made with. In all of
them settings are flat: `backbone = "VGG16"` and `--backbone VGG16`, whatever section it belongs to.
"""

import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from landmarks.running import command_line
from landmarks.running.answer_settings import RecognitionSettings, RetrievalSettings, VerificationSettings
from landmarks.running.command import InputError
from landmarks.running.command_line import flag, suggestion
from landmarks.running.files import whole
from landmarks.running.settings import (
    BESIDE,
    DEFAULT_RECIPE,
    ROOT,
    URLS,
    EmbeddingSettings,
    MirrorSettings,
    ModelSettings,
    PhotoSettings,
    RunSettings,
    Section,
    TrainingSettings,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = ROOT / "recipes"
MAX_BYTES = 2**14  # of a TOML file, seven times what all settings take: tomllib reads a.a.a... in the square of it
COUNT = re.compile(rb"# (\d{1,4}) settings\r?\n")  # the first line of what a work folder keeps
MADE = ("model.keras", "checkpoint.keras", "validation", "centres", "top", "features")  # first in a work folder


class Recipe(BaseModel):
    """The settings of recognition.py and retrieval.py. Only these doors see all of them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: RunSettings = RunSettings()
    source: MirrorSettings = MirrorSettings()
    photos: PhotoSettings = PhotoSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    recognition: RecognitionSettings = RecognitionSettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    verification: VerificationSettings = VerificationSettings()

    def keep(self) -> None:
        """Note the settings in the work folder, all but those of this run alone."""
        flat: dict[str, object] = {}
        for section in self.model_dump(mode="json").values():
            flat |= section
        try:
            text = f"# {len(flat)} settings\n{tomli_w.dumps(flat)}".encode()
        except UnicodeEncodeError as error:
            odd = next(value for value in flat.values() if error.object[error.start] in str(value))
            raise InputError(f"{odd!r} is no UTF-8, as TOML has to be: give it another name") from error
        with whole(self.run.work / "recipe.toml") as part:
            part.write_bytes(text)

    def is_new(self) -> bool:
        """Whether no model has been trained in the work folder, not for one mini-epoch."""
        return not any((self.run.work / name).exists() for name in ("model.keras", "checkpoint.keras"))

    def fixed(self) -> dict[str, object]:
        """The settings, by name, that all runs in one work folder share, since its model and features are made so."""
        return {name: value for _, section in self if not section.free for name, value in section}

    def divisible(self) -> dict[str, int]:
        """What several devices have to divide, by the names of the settings."""
        training = self.training
        sizes = {"batch_size": training.batch_size, "head_parts": self.model.head_parts}
        if self.model.loss == "triplet":
            sizes["classes_per_batch times photos_per_class"] = training.classes_per_batch * training.photos_per_class
        return {name: size for name, size in sizes.items() if size > 1 or name != "head_parts"}

    def beside(self) -> list["Recipe"]:
        """The recipe of the model beside this one's, if there is to be any: of the same photos, in WORK/beside.

        Raises InputError if there is no recipe of that name, or that folder was begun with another one.
        """
        name, folder = self.run.beside, self.run.work / BESIDE
        if not name:
            return []
        # What was begun goes on as it was then, also where the recipe's file is gone.
        path = folder / "recipe.toml" if _has_begun(folder) else _find(name)
        kept = _read(path)
        begun = kept.get("recipe") if path.parent == folder else name
        if begun != name:
            raise InputError(f"{folder} was begun with the recipe {begun}, not {name}; give another --work")
        shared = {**self.source.model_dump(), **self.photos.model_dump(), "seed": self.training.seed}
        of_run = ("checkpoint_minutes", "shards", "index_parts", "search", "devices", "cluster", "hosts")
        shared |= {name: getattr(self.run, name) for name in of_run}
        shared["engine"] = self.embedding.engine
        return [from_flat({**kept, **shared, "recipe": name, "work": folder, "beside": ""}, path)]

    @model_validator(mode="after")
    def _fit_together(self) -> "Recipe":
        mirror, size = self.source.mirror, self.model.image_size
        if self.model.loss == "triplet" and mirror.startswith(URLS):
            raise ValueError(
                f"triplets need any photo at any time, which {mirror} does not give: make a small local copy with "
                f"`python mirror.py shrink {mirror} OUT --size {size}` and train on --mirror OUT"
            )
        if self.embedding.scales != [1.0] and self.model.pooling == "flatten":
            raise ValueError("flatten needs photos of one size: --scales 1")
        if self.training.bottleneck_epochs and self.model.loss in ("triplet", "none"):
            raise ValueError("bottleneck_epochs train a head: --loss softmax or arcface")
        if self.run.hosts and (self.model.loss == "triplet" or self.training.bottleneck_epochs or self.run.models):
            raise ValueError(
                "several hosts train by --loss softmax or arcface, with --bottleneck-epochs 0, and one --work: leave "
                "out --hosts"
            )
        return self

    @model_validator(mode="after")
    def _can_recognise(self) -> "Recipe":
        by_head = self.recognition.recognizer == "head" or self.recognition.blend
        several = len(self.run.folders) > 1
        if by_head and (several or self.model.loss in ("triplet", "none")):
            reasons = {"triplet": "triplets train no head", "none": "there is no head where nothing is learnt"}
            headless = "several models have no head in common" if several else reasons[self.model.loss]
            raise ValueError(f"{headless}: --recognizer neighbours or centres, and --blend 0")
        verifies = self.verification.verify != "off" or self.retrieval.rerank_inliers
        if verifies and self.verification.extractor == "savedmodel" and not self.verification.extractor_model:
            raise ValueError("--extractor savedmodel needs the folder with it: --extractor-model DIR")
        return self


SECTIONS: dict[str, type[Section]] = {name: type(section) for name, section in Recipe()}
FIXED = {setting for section in SECTIONS.values() if not section.free for setting in section.model_fields}
SECTION_OF = {setting: name for name, section in SECTIONS.items() for setting in section.model_fields}


def load(arguments: list[str], unused: Collection[str] = ()) -> Recipe:
    """The settings of a command line, over those of the recipe it names or else of its work folder.

    Args:
        unused: settings that --help is silent of.

    Raises:
        InputError: an unknown name, a wrong value, or one that differs from what the work folder was made with.
    """
    given = command_line.parse(arguments, SECTIONS, _read(RECIPES / f"{DEFAULT_RECIPE}.toml"), unused)
    folders = str(given.get("work", "work")).split(",")
    if len(folders) > 1:
        if len({*filter(None, folders)}) < len(folders):
            raise InputError(f"--work {given['work']}: name each folder, and once")
        if given.get("beside"):
            raise InputError(f"--work {given['work']} are several models already: give them without --beside")
        given["models"] = [str(folder) for name in folders for folder in _with_beside(Path(name).resolve())]
        given["beside"] = ""
        given["work"] = Path(given["models"][0]).with_name("+".join(Path(folder).resolve().name for folder in folders))
    if Path(given.get("mirror", "")).is_dir() and given.get("mirror"):
        given["mirror"] = str(Path(given["mirror"]).resolve())
    if given.get("recognizer") == "head" or given.get("blend"):
        given.setdefault("beside", "")  # a head recognises alone, whatever a recipe has beside it
    if given.get("beside") == "" and "models" not in given:
        given.setdefault("model_weights", [])  # a recipe's are of two models
    if given.get("work") == "":
        raise InputError("--work is empty: name the folder for everything that is made")
    work = Path(given.get("work", "work"))
    if "models" in given and not _has_begun(work):  # the first one's settings hold for all together
        work = Path(given["models"][0])
        given.setdefault("model_weights", [])  # but for those of it and the one beside it
    kept = work / "recipe.toml"
    base = _find(given.get("recipe", DEFAULT_RECIPE))
    before = from_flat(_read(kept), kept) if _has_begun(work) else None
    # What was begun with a recipe goes on with it as it was then, whatever a newer release has under its name.
    if before and given.get("recipe", before.run.recipe) == before.run.recipe:
        if base.parent == RECIPES or "recipe" not in given:
            base = kept
    settings = _read(base)
    weights = Path(given.get("weights") or "imagenet")
    other_net = given.get("backbone", settings.get("backbone")) != settings.get("backbone")
    if other_net or weights.suffix == ".onnx" or weights.is_dir():
        given.setdefault("inner_layers", [])  # those of a recipe are its own backbone's
    recipe = from_flat({**settings, **given}, base, given)
    if recipe.run.store and "store" not in given:
        raise InputError(
            f"{base}: store is for the command line, which brings the copy before: --store {recipe.run.store}"
        )
    if before:
        old, new = before.fixed(), recipe.fixed()
        if changed := [f"{name} = {old[name]}, now {new[name]}" for name in sorted(old) if old[name] != new[name]]:
            raise InputError(f"{work} was begun with {', '.join(changed)}; give these as they were, or another --work")
    for folder in recipe.run.models:
        of(folder)  # there is a trained model
    return recipe


def _has_begun(work: Path) -> bool:
    """Whether the work folder keeps settings, and anything that was made with them: before that they bind nobody."""
    kept = work / "recipe.toml"
    return kept.is_file() and kept.stat().st_size > 0 and any((work / name).exists() for name in MADE)


def of(folder: Path) -> Recipe:
    """The settings that a finished work folder keeps. Raises InputError unless there is a trained model."""
    absent = [name for name in ("model.keras", "labels.csv", "recipe.toml") if not (folder / name).is_file()]
    if absent == ["labels.csv"]:  # which recognition.py alone does not bring back
        raise InputError(
            f"{folder / 'labels.csv'} is gone; bring back a copy, or delete model.keras beside it to train again"
        )
    if absent:
        which = f"{folder.parent} --beside RECIPE" if folder.name == BESIDE else folder
        raise InputError(f"there is no trained model {folder / absent[0]}: run recognition.py --work {which} first")
    return from_flat({**_read(folder / "recipe.toml"), "work": folder}, folder / "recipe.toml")


def _with_beside(folder: Path) -> list[Path]:
    """A work folder and that of the model beside it, which its settings may name."""
    return [folder, folder / BESIDE] if (folder / "recipe.toml").is_file() and of(folder).run.beside else [folder]


def selected(names: list[str], shards: str) -> list[str]:
    """The shard names that the setting `shards`, like 0:17, selects; all of them if it is empty."""
    if not shards:
        return names
    begin, end = map(int, shards.split(":"))
    return names[begin:end]


def _find(recipe: str) -> Path:
    path = RECIPES / f"{recipe}.toml"
    if path.exists():
        return path
    if Path(recipe).is_file():
        return Path(recipe)
    names = sorted(path.stem for path in RECIPES.glob("*.toml"))
    similar = suggestion(recipe, names)
    raise InputError(f"recipe {recipe!r} is neither one of {', '.join(names)} nor a TOML file{similar}")


def _read(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        settings = tomllib.loads(text.decode())
        kept = COUNT.match(text)
        if kept and len(settings) < int(kept[1]):  # cut at the end of a line it is still TOML
            raise ValueError(f"it has {len(settings)} settings, and its first line says {int(kept[1])}")
        repr(settings)  # RecursionError where tables lie in tables too deep for a message to show
        return settings
    except (ValueError, RecursionError) as error:  # a number of too many digits, or lists in lists in lists
        raise InputError(
            f"{path} is not TOML of settings: {error}; correct it, or delete it and give the settings that it had"
        ) from error


def from_flat(settings: Mapping[str, Any], source: Path, given: Collection[str] = ()) -> Recipe:
    """The recipe of settings by name, those of the file `source` and those that the command line has `given`.

    Raises InputError for an unknown name, which `source` has, or a wrong value.
    """
    if (unknown := next((name for name in settings if name not in SECTION_OF), None)) is not None:
        raise InputError(f"{source}: unknown setting {unknown[:100]}{suggestion(unknown, SECTION_OF)}")
    sections: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        sections.setdefault(SECTION_OF[name], {})[name] = value
    try:
        return Recipe.model_validate(sections)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if len(first["loc"]) < 2:  # of settings that do not go together
            beside = "" if source.parent == RECIPES else f" (beside what {source} says)"
            raise InputError(f"{message}{beside}; see --help") from error
        name = str(first["loc"][1])
        where = flag(name) if name in given or name not in settings else f"{source}: {name}"
        raise InputError(f"{where}: {message} (given: {settings.get(name)!r}); see --help all") from error
