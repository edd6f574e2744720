# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Landmark retrieval on Kaggle
#
# Find the photos of the same landmark in the index. This notebook embeds the index and the test photos by the model
# that [kaggle_recognition](kaggle_recognition.ipynb) trained, and writes `submission.csv`, without internet. It is
# also the one that you submit to a code competition.
#
# **Attach** by *Add Input*
#
# 1. the dataset of `python package_for_kaggle.py landmarks-package`, as for recognition,
# 2. the competition, as Landmark Retrieval 2021,
# 3. the output of the kernel that finished recognition; from the second kernel on that of the kernel before instead.
#
# **Set** *Internet* off and a GPU as *Accelerator*.
#
# Several kernels can share the work: `--shards 0:5` in `SETTINGS` embeds these shards alone (8,192 photos each), and
# a last kernel, with all that they left in `work/features/` copied together, and without it, searches.

# %% tags=["parameters"]
from pathlib import Path

INPUT = Path("/kaggle/input")  # what is attached
WORKING = Path("/kaggle/working")  # what is kept as the kernel's output, up to 20 GB
COMPETITION = "landmark-retrieval-2021"
SETTINGS = ""  # the model has its own; another order of the neighbours, for one: --rerank-by soft
TIME_LIMIT = "11h"  # a kernel has 12, and packages are installed first
SHORT_CUT = False  # True in the notebook that you submit: see below

# %% [markdown]
# ## What is attached
#
# Kaggle mounts a dataset at `/kaggle/input/NAME`, or deeper; these folders are found by what they hold.

# %%
import os
import shutil
import subprocess
import sys


def attached(name: str) -> Path | None:
    """The one folder, INPUT or below it, that holds a file of this name."""
    found = [path for depth in range(5) for path in INPUT.glob("*/" * depth + name)]
    if len(found) > 1:
        raise RuntimeError(f"{name} is attached twice, as {found[0]} and {found[1]}: remove one")
    return INPUT / str(found[0]).removesuffix(name) if found else None


def run(*arguments: object) -> None:
    """Python with these arguments, its output below the cell. The notebook ends where it fails."""
    command = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            print(line, end="")
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}, as it says above")


PACKAGE = attached("recognition.py")
MIRROR = attached(f"{COMPETITION}/train.csv")
EARLIER = attached("work/recipe.toml")
if PACKAGE is None or MIRROR is None or EARLIER is None:
    raise RuntimeError(
        f"attach the dataset of package_for_kaggle.py ({PACKAGE}), the competition ({MIRROR}) "
        f"and the output of recognition ({EARLIER})"
    )
MIRROR = MIRROR / COMPETITION
print(f"scripts: {PACKAGE}\nphotos: {MIRROR}\nwork of the kernel before: {EARLIER}")

# %% [markdown]
# ## Packages, without internet
#
# What Kaggle's image has, and is new enough, stays as it is: TensorFlow, which knows its GPU, above all. The rest
# comes from the wheels.

# %%
run(
    "-m",
    "pip",
    "install",
    "--quiet",
    "--no-index",
    "--find-links",
    PACKAGE / "wheels",
    "-r",
    PACKAGE / "requirements.txt",
)

# %% [markdown]
# ## A code competition runs this twice
#
# First you save the notebook, with the public data. When you submit it, Kaggle runs it again, with hidden data at the
# same paths: the test and the index of the private score. Only what that second run writes to `submission.csv` is
# scored.
#
# So the first run need not take hours. With `SHORT_CUT = True` it hands in the sample submission, and the second run
# answers, with the model whose work is attached. Kaggle sets the variable below in the second run. In 2021, before it
# did so, people told that run by the number of test photos, publicly 1,129.

# %%
SUBMISSION = WORKING / "submission.csv"
HIDDEN_DATA = bool(os.environ.get("KAGGLE_IS_COMPETITION_RERUN"))
ANSWERS = HIDDEN_DATA or not SHORT_CUT
if not ANSWERS:
    shutil.copyfile(MIRROR / "sample_submission.csv", SUBMISSION)
    print(f"{SUBMISSION}: the sample submission; the run on hidden data answers")

# %% [markdown]
# ## The work of the kernel before
#
# `work/` holds all that was made: the model, the embeddings of each finished shard. It is copied to where it may be
# written, and the run goes on from there. Embeddings of other photos, as those of the hidden data, are made anew.

# %%
WORK = WORKING / "work"
if ANSWERS and not WORK.exists():
    shutil.copytree(EARLIER / "work", WORK)
    print(*sorted(path.name for path in WORK.iterdir()))

# %% [markdown]
# ## The run
#
# The same command each time. When the time limit is reached it ends well, and there is no `submission.csv` yet.

# %%
if ANSWERS:
    run(
        PACKAGE / "retrieval.py", *SETTINGS.split(), "--mirror", MIRROR, "--work", WORK,
        "--time-limit", TIME_LIMIT, "--submission", SUBMISSION,
    )  # fmt: skip

# %% [markdown]
# ## Is it done?

# %%
if SUBMISSION.exists():
    run(PACKAGE / "submission.py", "check", "retrieval", SUBMISSION, "--mirror", MIRROR)
    print(*SUBMISSION.read_text().splitlines()[:6], sep="\n")
else:
    print("Not yet. Save this version, attach its output to a copy of this notebook, and run that.")
