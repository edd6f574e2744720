"""List the settings from the code, with their values, defaults and meanings, into docs/settings.md.

    python docs/settings.py

tests/test_documentation.py fails while the page says anything else than the code.
"""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from landmarks.running.command_line import TYPES, flag, meanings
from landmarks.running.recipe import load

PAGE = ROOT / "docs/settings.md"
BEGIN, END = "<!-- settings -->\n", "<!-- end of settings -->"
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def kind(annotation: Any) -> str:
    """A type as `TYPES` names it."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind(inner[0])
    return f"{origin.__name__}[{','.join(map(kind, inner))}]" if origin else annotation.__name__


def values(setting: str, field: FieldInfo) -> str:
    """What may be given."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    if field.annotation is bool:
        return f"`{flag(setting)}`, `{flag(f'no_{setting}')}`"
    said = field.title.replace("|", " or ") if field.title else TYPES[kind(field.annotation)]
    bounds = [(name, one) for one in field.metadata for name in BOUNDS if hasattr(one, name)]
    return ", ".join([said, *(f"{BOUNDS[name]} {getattr(one, name):,.10g}" for name, one in bounds)])


def default(value: Any) -> str:
    """As the command line would have it; nothing where it is empty."""
    if isinstance(value, bool):
        return "on" if value else "off"
    said = f"{value:g}" if isinstance(value, float) else "" if value == {} else str(value)
    if isinstance(value, list):
        said = ",".join(map(str, value))
    return f"`{said}`" if said else ""


def table() -> str:
    """Every setting, by section."""
    lines: list[str] = []
    for name, section in load([]):
        may = "may differ between two runs" if section.free else "stay as they are once something was made"
        about = " ".join((section.__doc__ or "").split())
        lines += [f"### {name.capitalize()}", "", f"{about[0].upper()}{about[1:]}. In one work folder these {may}.", ""]
        lines += ["| setting | values | default | meaning |", "|---|---|---|---|"]
        for setting, field in type(section).model_fields.items():
            meaning = " ".join(meanings(type(section))[setting].split())
            cells = [f"`{flag(setting)}`", values(setting, field), default(getattr(section, setting)), meaning]
            lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


def page() -> str:
    """docs/settings.md as it should be: what stands between its marks is listed anew."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
