# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Landmark recognition on Kaggle
#
# Which landmark does each test photo show, and how sure is that? This notebook trains a model and writes
# `submission.csv`, without internet, in as many kernels as that takes. It is also the one that you submit to a code
# competition.
#
# **Before**, on a computer with internet, in the folder of the scripts:
#
# ```sh
# python package_for_kaggle.py landmarks-package --weights ResNet50
# ```
#
# makes a folder of the scripts, the wheels of all packages that they need, and the first weights of the network.
# Upload it as a dataset: on Kaggle's page *Create, New Dataset*, or by `kaggle datasets init` and `kaggle datasets
# create --dir-mode zip` of its command line.
#
# **Attach** by *Add Input*
#
# 1. that dataset,
# 2. the competition, as Landmark Recognition 2021,
# 3. from the second kernel on, the output of the kernel before (*Your Work*, *Notebooks*).
#
# **Set** *Internet* off and a GPU as *Accelerator*.

# %% tags=["parameters"]
from pathlib import Path

INPUT = Path("/kaggle/input")  # what is attached
WORKING = Path("/kaggle/working")  # what is kept as the kernel's output, up to 20 GB
COMPETITION = "landmark-recognition-2021"
SETTINGS = "--recipe softmax --weights PACKAGE/weights/ResNet50.weights.h5"
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
if PACKAGE is None or MIRROR is None:
    raise RuntimeError(f"attach the dataset of package_for_kaggle.py ({PACKAGE}) and the competition ({MIRROR})")
MIRROR = MIRROR / COMPETITION
print(f"scripts: {PACKAGE}\nphotos: {MIRROR}\nwork of the kernel before: {EARLIER or 'none, this is the first one'}")

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
# same paths: all photos of the test, and, in 2020 and 2021, another `train.csv` with the photos of their landmarks.
# Only what that second run writes to `submission.csv` is scored.
#
# So the first run need not take hours. With `SHORT_CUT = True` it hands in the sample submission, and the second run
# answers, with the model of the kernel whose output is attached. Kaggle sets the variable below in the second run. In
# 2020 and 2021, before it did so, people told that run by the number of rows of `train.csv`, publicly 1,580,470.

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
# `work/` holds all that was made: the checkpoint, the model, the embeddings of each finished shard. It is copied to
# where it may be written, and the run goes on from there. Embeddings of other photos, as those of the hidden data,
# are made anew.

# %%
WORK = WORKING / "work"
if ANSWERS and EARLIER and not WORK.exists():
    shutil.copytree(EARLIER / "work", WORK)
    print(*sorted(path.name for path in WORK.iterdir()))

# %% [markdown]
# ## The run
#
# The same command each time. When the time limit is reached it ends well, and there is no `submission.csv` yet.

# %%
settings = SETTINGS.replace("PACKAGE", str(PACKAGE)).split()
if ANSWERS:
    run(
        PACKAGE / "recognition.py", *settings, "--mirror", MIRROR, "--work", WORK,
        "--time-limit", TIME_LIMIT, "--submission", SUBMISSION,
    )  # fmt: skip

# %% [markdown]
# ## Is it done?

# %%
if SUBMISSION.exists():
    run(PACKAGE / "submission.py", "check", "recognition", SUBMISSION, "--mirror", MIRROR)
    print(*SUBMISSION.read_text().splitlines()[:6], sep="\n")
else:
    print("Not yet. Save this version, attach its output to a copy of this notebook, and run that.")
