"""Draw the house from the code: its floors and who imports whom, and its rooms, into docs/architecture.md.

    python docs/house.py

tests/test_architecture.py fails while the page shows another house than the code.
"""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/architecture.md"
STAGES = ("features", "generators", "model")
FLOORS = (  # imports run down this list, never up
    ("doors",), ("report",), ("local_features",), ("training",), ("neighbours",), ("features",),
    ("generators", "model"), ("cluster", "networks"), ("mirrors",), ("sample",), ("scoring",), ("running",),
)  # fmt: skip
FLOOR = {place: number for number, floor in enumerate(FLOORS) for place in floor}


def rooms() -> dict[str, list[Path]]:
    """The files of each place: the doors, each stage at the root, each wing."""
    found: dict[str, list[Path]] = {place: [] for floor in FLOORS for place in floor}
    for path in sorted(ROOT.glob("*.py")):
        found[path.stem if path.stem in STAGES else "doors"].append(path)
    for path in sorted(ROOT.glob("landmarks/*/*.py")):
        found[path.parent.name].append(path)
    return found


def imports(path: Path) -> set[str]:
    """The places that a file imports anything of, also within functions and for types alone, but its own.

    What a stage does when it is run as a command does not count: it is a door then.
    """
    modules = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "__main__" in ast.unparse(node.test))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{name.name}" for name in node.names}
    doors = {door.stem for door in ROOT.glob("*.py")} - set(STAGES)
    found = set()
    for parts in (module.split(".") for module in modules):
        if parts[0] == "landmarks":
            found.add(parts[1])
        elif parts[0] in STAGES:
            found.add(parts[0])
        elif parts[0] in doors:
            found.add("doors")
    return found - {path.stem if path.parent == ROOT and path.stem in STAGES else path.parent.name}


def purpose(path: Path) -> str:
    """The first line of a file's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def picture() -> str:
    """Who imports whom, as Mermaid: an arrow is left out where a longer way leads there too."""
    below: dict[str, set[str]] = defaultdict(set)
    for place, files in rooms().items():
        for path in files:
            below[place] |= imports(path)
    reached: dict[str, set[str]] = {}
    for place in sorted(below, key=FLOOR.__getitem__, reverse=True):
        reached[place] = set().union(*(reached.get(other, set()) | {other} for other in below[place]))
    lines = ["```mermaid", "flowchart TD"]
    for place, files in rooms().items():
        names = " · ".join(path.stem for path in files if path.stem != "__init__")
        label = f"{place}.py" if place in STAGES else f"{place}<br/><small>{names}</small>"
        lines.append(f'    {place}["{label}"]')
    for place in rooms():
        longer = set().union(*(reached.get(other, set()) for other in below[place]))
        lines += [f"    {place} --> {other}" for other in sorted(below[place] - longer, key=list(FLOOR).index)]
    return "\n".join([*lines, "```"])


def table() -> str:
    """Every room and its purpose, from the top floor to the bottom one."""
    lines = ["| room | what it is for |", "|---|---|"]
    for place, files in rooms().items():
        if place not in (*STAGES, "doors"):
            lines.append(f"| **landmarks/{place}/** | **{purpose(ROOT / 'landmarks' / place / '__init__.py')}** |")
        for path in files:
            if path.stem != "__init__":
                lines.append(f"| {path.relative_to(ROOT).as_posix()} | {purpose(path).rstrip('.')} |")
    return "\n".join(lines)


def page() -> str:
    """docs/architecture.md as it should be: what stands between its marks is drawn anew."""
    text = PAGE.read_text(encoding="utf-8")
    for name, drawn in (("picture", picture()), ("rooms", table())):
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}{drawn}\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
