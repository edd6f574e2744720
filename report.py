"""Show people what a run has found: one page to look at, without a server, that asks for nothing.

    python report.py WORK                              writes WORK/report.html
    python report.py A B C [--out comparison.html]     lays several runs side by side

recognition.py and retrieval.py write WORK/report.html when they end. Here it is written anew, while a run goes on too.
Photos are shown where the mirror is in a folder; one at a URL is asked for nothing.
"""

import argparse
from pathlib import Path

from landmarks.running import command
from landmarks.running import recipe as recipes
from landmarks.running.command import InputError
from landmarks.scoring.solutions import task_of


def main() -> None:
    parser = command.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="+", metavar="WORK", type=Path, help="the work folder of a run")
    parser.add_argument("--out", type=Path, help="the page (default WORK/report.html; of several comparison.html)")
    parser.add_argument("--mirror", type=Path, metavar="FOLDER", help="where the mirror is now, if it has moved")
    parser.add_argument(
        "--solutions", nargs="+", default=[], metavar="FILE", type=Path, help="to judge by, in place of the mirror's"
    )
    arguments = parser.parse_args()
    for work in arguments.works:
        if not (work / "recipe.toml").is_file():
            raise InputError(f"{work} is no work folder of a run: it has no recipe.toml")
    moved = [f"--mirror={arguments.mirror}"] if arguments.mirror else []
    found = [recipes.load([f"--work={work}", *moved]) for work in arguments.works]
    from landmarks.report import page, work_folder  # matplotlib takes seconds, which --help need not wait for

    given = {task_of(path): path for path in arguments.solutions}
    runs = [
        work_folder.gather(recipe.run, recipe.source, recipe.training.seed, recipe.model_dump(mode="json"), given)
        for recipe in found
    ]
    several = len(runs) > 1
    out = arguments.out or (Path("comparison.html") if several else runs[0].work / page.REPORT)
    page.compare(runs, out) if several else page.write(runs[0], out)
    print(out)


if __name__ == "__main__":
    command.run(main)
