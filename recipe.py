"""Where settings come from: a recipe (TOML), the work folder, and the command line.

A recipe in `recipes/` holds one known-good set. What the command line gives wins over the recipe; what neither gives
has the default below, which is the `small` recipe. The work folder keeps the settings that its model was made with.
"""

import re
import sys
from difflib import get_close_matches
from pathlib import Path

import tomli_w
from pydantic import ValidationError
from pydantic_settings import CliSettingsSource, SettingsError

from command import InputError
from files import whole
from settings import Recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"

# What may differ between two runs in one work folder: it changes neither the model nor the features.
FREE = {
    "recipe", "work", "time_limit", "shards", "ahead", "strict_md5", "checkpoint_minutes",
    "recognizer", "votes", "vote_power", "vote_all", "blend", "non_landmarks", "penalty",
    "penalty_weight", "most_predicted", "models", "model_weights",
    "index_parts", "rerank", "rerank_factor", "rerank_by", "rerank_least", "rerank_depth", "query_expansion",
    "database_augmentation", "rerank_inliers",
    "verify", "extractor", "extractor_model", "delf_epochs", "delf_photos", "delf_backbone", "delf_weights",
    "local_size", "local_points", "local_gigabytes", "inliers", "inlier_weight", "comparisons",
}  # fmt: skip
OF_ONE_RUN = {"work", "time_limit", "shards"}  # not kept in the work folder


def load(arguments: list[str]) -> Recipe:
    """The settings of a command line, over those of the recipe it names or else of its work folder.

    Raises:
        InputError: an unknown name, a wrong value, or one that differs from what the work folder was made with.
    """
    try:
        given = CliSettingsSource(Recipe, cli_parse_args=arguments)()
    except SettingsError as error:
        raise InputError(_explain_arguments(str(error))) from error
    folders = str(given.get("work", "work")).split(",")
    if len(folders) > 1:
        given["models"] = [str(Path(folder).resolve()) for folder in folders]
        given["work"] = Path(given["models"][0]).with_name("+".join(Path(folder).name for folder in given["models"]))
    if Path(given.get("mirror", "")).is_dir() and given.get("mirror"):
        given["mirror"] = str(Path(given["mirror"]).resolve())
    kept = Path(given.get("work", "work")) / "recipe.toml"
    if not kept.exists() and "models" in given:  # the first one's settings hold for all together
        kept = Path(given["models"][0]) / "recipe.toml"
    base = _find(given.get("recipe", "small"))
    if kept.exists():
        before = _validated(_read(kept), kept)
        # What was begun with a recipe goes on with it as it was then, whatever a newer release has under its name.
        if given.get("recipe", before.recipe) == before.recipe and (base.parent == RECIPES or "recipe" not in given):
            base = kept
    recipe = _validated({**_read(base), **given}, base)
    if kept.exists():
        changed = {name for name in Recipe.model_fields if getattr(before, name) != getattr(recipe, name)} - FREE
        if changed:
            was = ", ".join(
                f"{name} = {getattr(before, name)}, now {getattr(recipe, name)}" for name in sorted(changed)
            )
            raise InputError(f"{kept.parent} was begun with {was}; give these as they were, or another --work")
    for folder in recipe.models:
        photos = [(one.mirror, one.mirror == "sample" and one.seed) for one in (recipe, of(folder))]
        if photos[0] != photos[1]:
            raise InputError(f"{folder} was trained on {photos[1][0]}, {recipe.models[0]} on another mirror or sample")
    return recipe


def of(folder: Path) -> Recipe:
    """The settings that a finished work folder keeps. Raises InputError unless there is a trained model."""
    if absent := [name for name in ("model.keras", "labels.csv", "recipe.toml") if not (folder / name).is_file()]:
        raise InputError(f"there is no trained model {folder / absent[0]}: run recognition.py --work {folder} first")
    return _validated({**_read(folder / "recipe.toml"), "work": folder}, folder / "recipe.toml")


def keep(recipe: Recipe) -> None:
    """Note the settings in the work folder."""
    with whole(recipe.work / "recipe.toml") as part:
        part.write_text(tomli_w.dumps(recipe.model_dump(mode="json", exclude=OF_ONE_RUN)))


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
    names = ", ".join(sorted(path.stem for path in RECIPES.glob("*.toml")))
    raise InputError(f"recipe {recipe!r} is neither one of {names} nor a TOML file")


def _read(path: Path) -> dict:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from error


def _validated(settings: dict, source: Path) -> Recipe:
    try:
        return Recipe(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            raise InputError(f"{source}: unknown setting {name}{_suggest(name)}") from error
        value = f" (given: {settings[name]!r})" if name in settings else ""
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"--{name.replace('_', '-')}: {message}{value}; see --help".removeprefix("--: ")) from error


def _explain_arguments(message: str) -> str:
    message = message.removeprefix("error parsing CLI: ")
    unknown = re.search(r"unrecognized arguments: --([\w-]+)", message)
    return message + (_suggest(unknown[1].replace("-", "_")) if unknown else "") + "; see --help"


def _suggest(name: str) -> str:
    close = get_close_matches(name, Recipe.model_fields, n=1)
    return f" (did you mean --{close[0].replace('_', '-')}?)" if close else ""
