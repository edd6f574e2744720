"""Settings on a command line: read by name; with --help explained, those that matter first or all of them."""

import argparse
import ast
import inspect
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from pydantic import create_model
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsError

from landmarks.running.command import InputError
from landmarks.running.settings import Section

FIRST = {
    "recipe", "mirror", "work", "time_limit", "min_images", "backbone", "image_size", "epochs", "batch_size",
    "learning_rate",
}  # fmt: skip
TYPES = {  # what pydantic says of them, in plain words; a setting's title says more
    "str": "TEXT", "int": "N", "float": "NUMBER", "Path": "FOLDER", "list[int]": "N,N", "list[float]": "NUMBER,NUMBER",
    "list[Path]": "FOLDER,FOLDER", "list[str]": "NAME,NAME", "dict[float,float]": "STEP=RATE",
}  # fmt: skip


def parse(
    arguments: list[str],
    sections: Mapping[str, type[Section]],
    defaults: Mapping[str, Any],
    unused: Collection[str] = (),
) -> dict[str, Any]:
    """What a command line gives, by name. With --help: explain the settings but for `unused`, and exit.

    Each setting is said to have its value in `defaults`, those of a recipe, or else its own default.

    `--help` explains the ten that matter first and names the others by section; `--help all` explains these too.

    Raises InputError for an unknown name, or a value that cannot be read.
    """
    section_of = {setting: name for name, section in sections.items() for setting in section.model_fields}
    explains, explains_all = bool({"-h", "--help"} & set(arguments)), "all" in arguments
    groups: dict[str, Any] = {}
    explained = sections.values() if explains else ()
    meaning_of = {setting: text for section in explained for setting, text in meanings(section).items()}

    def add(parser: argparse.ArgumentParser, *flags: str, dest: str = "help", **options: Any) -> None:
        if not explains or dest not in section_of:
            parser.add_argument(*flags, dest=dest, **{**options, "help": argparse.SUPPRESS})
            return
        section = sections[section_of[dest]]
        field = section.model_fields[dest]
        if "metavar" in options:
            options["metavar"] = field.title or TYPES.get(options["metavar"], options["metavar"])
        default = defaults.get(dest, field.default)
        options["help"] = meaning_of[dest] + ("" if default in ("", [], {}) else f" (default: {default})")
        name = "what matters first" if dest in FIRST else section_of[dest]
        if dest in unused or not (explains_all or dest in FIRST):
            options["help"] = argparse.SUPPRESS
        if name not in groups:
            rest = [setting for setting in section.model_fields if setting not in {*unused, *FIRST}]
            about = section.__doc__ if rest and dest not in FIRST else None
            names = "" if explains_all else f": {' '.join(map(flag, rest))}"
            groups[name] = parser.add_argument_group(name, about and _filled(about + names))
        groups[name].add_argument(*flags, dest=dest, **options)

    # The fields of the last base come first.
    bases: tuple[type, ...] = (*reversed(list(sections.values())), BaseSettings)
    source: CliSettingsSource = CliSettingsSource(
        create_model("Settings", __base__=bases, __doc__=""),
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        add_argument_method=add,
    )
    if explains:
        _print_help(source.root_parser)
    try:
        return source(args=arguments)()
    except SettingsError as error:
        raise InputError(_explain(str(error), section_of)) from error


def meanings(section: type[Section]) -> dict[str, str]:
    """What each setting of a section means: the text below it, which pydantic would read at every start."""
    body = _classes(inspect.getfile(section))[section.__name__]
    return {
        setting.target.id: inspect.cleandoc(text.value.value)
        for setting, text in pairwise(body)
        if isinstance(setting, ast.AnnAssign)
        and isinstance(setting.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


@cache
def _classes(source: str) -> dict[str, list[ast.stmt]]:
    """The bodies of a module's classes by name."""
    module = ast.parse(Path(source).read_text(encoding="utf-8"))
    return {one.name: one.body for one in module.body if isinstance(one, ast.ClassDef)}


def _print_help(parser: argparse.ArgumentParser) -> NoReturn:
    parser.usage = f"{Path(sys.argv[0]).name} [--SETTING VALUE ...]"
    parser.epilog = "--help all explains every setting; each may stand in a recipe (recipes/*.toml) too."
    parser.print_help()
    sys.exit(0)


def _filled(text: str) -> str:
    return textwrap.fill(text, max(shutil.get_terminal_size().columns - 4, 20), break_on_hyphens=False)


def _explain(message: str, names: Iterable[str]) -> str:
    message = message.removeprefix("error parsing CLI: ")
    _, is_unknown, unknown = message.partition("unrecognized arguments: --")
    if is_unknown:
        message += suggestion(unknown.split()[0].partition("=")[0].replace("-", "_"), map(flag, names))
    _, is_unread, rest = message.partition("Parsing error encountered for ")
    if is_unread:  # of a dict, where a part is no pair
        message = f"{flag(rest.partition(':')[0])} takes {TYPES['dict[float,float]']}, like 170=1e-4"
    return f"{message}; see --help"


def flag(setting: str) -> str:
    """Its name on a command line."""
    return f"--{setting.replace('_', '-')}"


def suggestion(name: str, names: Iterable[str], most: int = 1, cutoff: float = 0.6) -> str:
    """The most similar of the names that there are, in brackets; empty if none is similar, as `difflib` measures it."""
    close = get_close_matches(name, list(names), most, cutoff)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
