"""Show people what a run has found: one page to look at, without a server, that asks for nothing.

    python report.py WORK                              writes WORK/report.html
    python report.py A B C [--out comparison.html]     lays several runs side by side

recognition.py and retrieval.py write WORK/report.html when they end; this writes it anew, while a run goes on too.
Photos are shown where the mirror is in a folder; one at a URL is asked for nothing. WORK may be A,B: several models
together.
"""

import argparse
from pathlib import Path

from landmarks.running import command
from landmarks.running import recipe as recipes
from landmarks.running.command import InputError
from landmarks.running.recipe import Recipe
from landmarks.running.said import size_of
from landmarks.scoring.solutions import task_of


def main() -> None:
    parser = command.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="+", metavar="WORK", help="the work folder of a run")
    parser.add_argument("--out", type=Path, help="the page (default WORK/report.html; of several comparison.html)")
    parser.add_argument("--mirror", metavar="FOLDER", help="where the mirror is now, if it has moved")
    parser.add_argument(
        "--solutions", nargs="+", default=[], type=Path, metavar="FILE", help="to judge by, in place of the mirror's"
    )
    arguments = parser.parse_args()
    given = {task_of(path): path for path in arguments.solutions}
    found = [recipe_of(work, arguments.mirror) for work in arguments.works]
    from landmarks.report import page, work_folder  # matplotlib takes a second, which --help need not wait for

    runs = [
        work_folder.gather(one.run, one.source, one.training.seed, one.model_dump(mode="json"), given) for one in found
    ]
    if len(runs) == 1:
        out = arguments.out or runs[0].work / page.REPORT
        page.write(runs[0], out)
    else:
        out = arguments.out or Path("comparison.html")
        page.compare(runs, out)
    print(f"{out}: {size_of(out.stat().st_size)}")


def recipe_of(work: str, mirror: str | None) -> Recipe:
    """The settings that a work folder keeps, but for the mirror if that is given. Raises InputError for none."""
    recipe = recipes.load([f"--work={work}", *([f"--mirror={mirror}"] if mirror else [])])
    if not (recipe.run.work / "recipe.toml").is_file():
        raise InputError(f"{recipe.run.work} is no work folder of a run: there is no recipe.toml in it")
    return recipe


if __name__ == "__main__":
    command.run(main)
