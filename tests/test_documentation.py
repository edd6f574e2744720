"""README and docs say what is so: commands run, links lead somewhere, settings are those of the code."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
import scripts
from conftest import ROOT, jpeg, photos_in

from docs import settings
from landmarks.running import recipe as recipes
from landmarks.running.command_line import flag

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS, *(ROOT / f"{name}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY"))]
STORY = [  # pages whose commands follow one another
    "README.md", "guide.md", "recipes.md", "formats.md", "questions.md", "growing.md",
]  # fmt: skip
TINY = [
    *scripts.ALONE, "--backbone=Tiny", "--weights=none", "--image-size=32", "--crop=1", "--batch-size=8", "--epochs=1",
    "--extractor=sift",
]  # fmt: skip
MORE = {  # arguments, so that a command takes seconds
    "python recognition.py": TINY,
    "python verification.py match": ["--extractor=sift"],
}
PUBLIC = "takes the public mirror, from the network"
EXTRA = "takes packages of requirements-export.txt"
NOT_RUN = {  # commands that begin so are looked at, but not run, for this reason
    "pip install": "takes the package index",
    "uv pip compile": "takes the package index",
    "pytest": "runs this",
    "ruff": "is of .ci/run", "lint-imports": "is of .ci/run", "mypy": "is of .ci/run",
    "jupytext": "makes notebooks", "jupyter execute": "is of tests/test_notebooks.py",
    "sphinx-build": "is of .github/workflows/tests.yml",
    "python benchmarks/": "takes minutes to hours",
    "python recognition.py --recipe softmax": PUBLIC,
    "python retrieval.py --work /kaggle/working/softmax": PUBLIC,
    "python retrieval.py --work softmax": PUBLIC,
    "python mirror.py shrink https://": PUBLIC,
    "python recognition.py --recipe triplet": PUBLIC,
    "python recognition.py --recipe small-frozen --weights delg/": "takes a model of others",
    "python retrieval.py --work delg": "goes on from it",
    "python mirror.py fetch": "downloads photos",
    "python recognition.py --work work --track": "takes packages of requirements-mlflow.txt",
    "python recognition.py --recipe dinov2-small": "takes weights from a hub",
    "python package_for_kaggle.py": "downloads 0.7 GB of wheels",
    "python cleaning.py": "takes a classifier of scenes",
    "python model.py export my-work --format": EXTRA, "python features.py to": EXTRA,
    "from datasets import": "takes a package that nothing else does", "import fiftyone": "likewise",
    "python mirror.py sample": "takes a minute",
    "python explore.py": "serves a page until it is ended",
    "tar xf my-sample/": "goes on from it", "python identify.py 2/3/0/": "goes on from it",
}  # fmt: skip

# Executes a script in a folder: whole, or as far as it has read and checked its settings.
BEGIN = """
import argparse, os, runpy, sys
from pathlib import Path
os.chdir(sys.argv[1])
sys.argv = sys.argv[2:]
sys.path[0] = str(Path(sys.argv[0]).parent)
"""
STOP = """
from landmarks.running import recipe

def and_stop(read):
    def stop(*arguments, **options):
        read(*arguments, **options)
        sys.exit()
    return stop

if sys.argv[0].endswith(("recognition.py", "retrieval.py", "plan.py")):
    recipe.load = and_stop(recipe.load)
else:
    argparse.ArgumentParser.parse_args = and_stop(argparse.ArgumentParser.parse_args)
"""
RUN = BEGIN + "runpy.run_path(sys.argv[0], run_name='__main__')"
READ = BEGIN + STOP + "runpy.run_path(sys.argv[0], run_name='__main__')"


def ids(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def fences(page: Path) -> list[tuple[str, str]]:
    """The language and the content of each fenced block."""
    return re.findall(r"^```(\S*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def codes(page: Path) -> list[str]:
    """What stands in backticks within the prose."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def commands(bodies: list[str]) -> list[str]:
    """The commands in code, one by one, without comments."""
    lines = [line.partition(" #")[0] for body in bodies for line in body.replace("\\\n", "").split("\n")]
    return [" ".join(part.split()) for line in lines for part in line.split("&&") if part.strip()]


def fenced(page: Path) -> list[str]:
    return commands([body for language, body in fences(page) if language == "sh"])


def not_run(command: str) -> str | None:
    """The beginning of a command that is not run."""
    return next((beginning for beginning in NOT_RUN if command.startswith(beginning)), None)


def execute(program: str, folder: Path, command: str, more: list[str]) -> None:
    """`program` on a command that begins with `python`, in a folder. It must end well."""
    script, *arguments = shlex.split(command)[1:]
    assert (ROOT / script).is_file(), f"`{command}`: there is no {script}"
    done = scripts.run("-c", program, folder, ROOT / script, *arguments, *more)
    assert done.returncode == 0, f"`{command}` ends with {done.returncode}: {done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def place(tiny_mirror, tmp_path_factory) -> Path:
    """A folder with what the pages take for granted."""
    folder = tmp_path_factory.mktemp("place")
    for number, name in enumerate(("eiffel-tower", "tower-bridge")):
        photos_in(folder / "my-photos" / name, 6, seed=10 * number)
    photos_in(folder / "other-photos", 6, seed=20)
    rows = [f"my-photos/{name}/{number}.jpg,{name}" for name in ("eiffel-tower", "tower-bridge") for number in range(6)]
    (folder / "my-list.csv").write_text("\n".join(["path,place", *rows]))
    photos_in(folder / "new-photos/My church", 3, seed=40)
    for number, name in enumerate(("photo", "A", "B")):
        (folder / f"{name}.jpg").write_bytes(jpeg(30 + number, (200, 150)))
    shutil.copytree(tiny_mirror, folder / "MIRROR")
    toml = next(body for language, body in fences(ROOT / "docs/recipes.md") if language == "toml")
    (folder / "my-recipe.toml").write_text(toml)
    return folder


def test_fenced_commands_run(place):
    for page in (path for name in STORY for path in PAGES if path.name == name):
        for command in fenced(page):
            if not not_run(command):
                more = next((more for beginning, more in MORE.items() if command.startswith(beginning)), [])
                execute(RUN, place, command, more + ["--mirror=MIRROR"] * (more is TINY and "--mirror" not in command))
        for language, body in fences(page):
            if language == "python" and not not_run(body):
                begin = f"import os, sys; os.chdir({str(place)!r}); sys.path[0] = {str(ROOT)!r}\n"
                done = scripts.run("-c", begin + body)
                assert done.returncode == 0, f"{page.name}: {body}: {done.stderr[-2000:]}"
        if page.name == "README.md":  # the next pages have two models, a submission and a solution
            for name in ("A", "B"):
                shutil.copytree(place / "frozen", place / name)
            for name in ("A", "B", "SUBMISSION"):
                shutil.copy(place / "frozen/recognition.csv", place / f"{name}.csv")
            shutil.copy(place / "MIRROR/ground_truth/recognition_solution_v2.1.csv", place / "SOLUTION.csv")


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_commands_that_are_not_run_are_read(page, tmp_path):
    named = commands([code for code in codes(page) if code.startswith(("python ", "pip install ", "sphinx-build "))])
    others = [command for command in fenced(page) if page.name not in STORY or not_run(command)]
    for command in dict.fromkeys([*named, *others]):
        if command.startswith("pip install"):
            require_listed(command)
        elif command.startswith("pytest"):
            assert all((ROOT / word).exists() for word in command.split() if word.startswith("tests/")), command
        elif not command.startswith("python"):
            assert not_run(command), f"`{command}` is neither run nor in NOT_RUN"
        elif not re.search("parse_args|recipes.load|command.run", text_of(ROOT / command.split()[1])):
            assert len(command.split()) == 2, f"`{command}`: it takes no arguments"
        else:
            execute(READ, tmp_path, command, [])


def require_listed(command: str) -> None:
    """A file of requirements is there; another package is among those in such files."""
    listed = " ".join(text_of(path) for path in ROOT.glob("requirements*.txt"))
    words = command.split()[2:]
    for before, word in zip(["", *words], words, strict=False):
        if before == "-r":
            assert (ROOT / word).is_file(), command
        elif not word.startswith("-") and word != "uv":  # which makes the lock alone
            assert re.search(rf"\b{word}\b", listed), f"`{command}`: {word} is in no requirements*.txt"


def test_every_exception_is_needed():
    programs = [body for page in PAGES for language, body in fences(page) if language == "python"]
    there = {not_run(one) for one in [*programs, *(command for page in PAGES for command in fenced(page))]}
    assert there - {None} == set(NOT_RUN)


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_fences_say_what_they_hold(page):
    known = {"sh", "text", "python", "toml", "yaml", "mermaid", "{toctree}"}
    assert {language for language, _ in fences(page)} <= known
    assert text_of(page).count("```") == 2 * len(fences(page))


@pytest.mark.parametrize("page", PAGES[:-3] + PAGES[-2:])  # the changelog tells of settings that were
def test_settings_that_are_named_are_there(page, tmp_path, monkeypatch):
    sources = " ".join(
        text_of(path) for folder in ("", "benchmarks/", "landmarks/neighbours/") for path in ROOT.glob(f"{folder}*.py")
    )
    known = {*map(flag, recipes.SECTION_OF), *(flag(f"no_{name}") for name in recipes.SECTION_OF), "--help"}
    options = {*re.findall(r'"(--[a-z0-9-]+)"', sources), "--require-hashes", "--hypothesis-profile", "--ignore-vuln"}
    monkeypatch.chdir(tmp_path)
    for code in codes(page):
        named = re.findall(r"(?<![\w-])--[a-z0-9-]+", code)
        assert set(named) <= known | options, code
        has_values = code.startswith("--") and " " in code and not re.search(" [A-Z]", code)  # which stand for some
        if has_values and set(named) <= known - {"--help"}:
            recipes.load(shlex.split(code))


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=ids(PAGES))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not anchor or anchor in slugs(target), link
        assert page not in DOCS or target.parent == page.parent, f"{link} is not in docs, nor in its site"


def test_the_site_has_every_page():
    _, listed = next(fence for fence in fences(ROOT / "docs/index.md") if fence[0] == "{toctree}")
    assert {f"{line}.md" for line in listed.split("\n") if line and line[0] != ":"} == set(ids(DOCS)) - {"index.md"}


def test_the_page_of_settings_is_that_of_the_code():
    assert text_of(settings.PAGE) == settings.page(), "run `python docs/settings.py`"


def test_the_readme_is_short_and_narrow():
    lines = text_of(ROOT / "README.md").splitlines()
    assert len(lines) < 150
    assert max(map(len, lines)) <= 120
    assert max(len(line) for line in lines if line.startswith("|")) <= 110
    assert all(path.stat().st_size < 150_000 for path in (ROOT / "docs").glob("*.[jp][pn]g"))


def test_the_figures_of_the_readme_are_those_of_the_benchmarks():
    measured = text_of(ROOT / "docs/benchmarks.md").splitlines()
    rows = re.findall(r"^\| `(small[\w-]*)` \|(.*)$", text_of(ROOT / "README.md"), re.MULTILINE)
    assert len(rows) >= 4
    for recipe, row in rows:
        there = " ".join(line for line in measured if f"`{recipe}`" in line)
        for figure in re.findall(r"0\.\d{3}", row):
            assert figure in there, f"{figure} of {recipe}"
