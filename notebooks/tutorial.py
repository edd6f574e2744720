# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One shard through the house
#
# How photos become answers, step by step, with a picture of each: the mirror, a shard of it, a batch, the network,
# the embeddings, the nearest photos, and the two submissions. It takes a minute on two cores, and needs no data set,
# no GPU and no network: `pip install -r requirements.txt -r requirements-notebooks.txt`.

# %% tags=["parameters"]
from pathlib import Path

WORK = Path("work/tutorial")  # all that is made goes there
LANDMARKS = 8  # of the sample; four and four look alike
VIEWS = (12, 16)  # photos of each of them
OTHERS = 20  # photos that show none
SIZE = 192  # side of a photo as the network sees it, in pixels

# %%
import subprocess
import sys
from io import BytesIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display_jpeg
from PIL import Image

ROOT = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "recognition.py").exists())
sys.path.insert(0, str(ROOT))

from landmarks.running import command

command.prepare_backend()


def show(picture: Image.Image) -> None:
    """A picture of photos, below the cell."""
    encoded = BytesIO()
    picture.save(encoded, "JPEG", quality=80)
    display_jpeg(encoded.getvalue(), raw=True)


# %% [markdown]
# ## A mirror
#
# All photos are in a *mirror*: tar shards and CSVs, laid out as the Google Landmarks Dataset v2 is published. A
# folder of your own photos becomes one by `python mirror.py import`. This one is made on the spot, of invented
# buildings.

# %%
from landmarks.mirrors.open import make_sample, open_mirror

if not (WORK / "mirror").exists():
    make_sample(WORK / "mirror", landmarks=LANDMARKS, views=VIEWS, others=OTHERS)
mirror = open_mirror(str(WORK / "mirror"))
for path in sorted(WORK.rglob("mirror/*/*")):
    print(path)

# %% [markdown]
# `train.csv` tells the landmark of each train photo. Those of the test and the index photos are in the solutions,
# which nothing but the scores looks at.

# %%
names = {landmark: url.rpartition(":")[2].replace("_", " ") for landmark, url in mirror.categories().items()}
train = mirror.train()
train.assign(name=train["landmark_id"].map(names)).head()

# %% [markdown]
# ## A shard
#
# The public mirror has 500 shards of 1 GB; one after another they are downloaded, used and deleted. Whatever a mirror
# is, it gives shards: the ids of their photos, and each photo's bytes.

# %%
from landmarks.mirrors.pictures import side_by_side

name = mirror.shard_names("train")[0]
shards = mirror.stream("train", [name])
shard = next(shards)
landmark_of = train.set_index("id")["landmark_id"]
print(f"{name}: {len(shard.ids)} photos")
show(side_by_side([(shard.read(identity), names[landmark_of[identity]]) for identity in shard.ids[:5]]))

# %% [markdown]
# ## A batch
#
# `generators.py` decodes photos in threads and squashes them to a square: uint8, (batch, side, side, 3). In training
# each one gives a random square of three quarters of the side, mirrored in half of the cases. That is a layer of the
# network, so an accelerator does it.

# %%
from generators import Batches
from landmarks.networks.layers import RandomCropFlip

ids, images = next(iter(Batches(shard, shard.ids, SIZE, batch_size=6)))
crops = np.asarray(RandomCropFlip(SIZE * 3 // 4, flip=True)(images, training=True))
print(images.dtype, images.shape, "->", crops.shape)
next(shards, None)  # who asks for the next shard is done with this one; of the public mirror it would be deleted now
edge = (SIZE - crops.shape[1]) // 2
framed = np.pad(crops, [(0, 0), (edge, edge), (edge, edge), (0, 0)], constant_values=255)
show(Image.fromarray(np.vstack([np.hstack(list(one)) for one in (images, framed)])))

# %% [markdown]
# ## The network
#
# `model.py` builds it: a backbone, pooling, and what the loss takes. Here nothing is trained: EfficientNet-Lite0 as
# it came from ImageNet maps a photo to 1,280 numbers of length 1, its *embedding*. How alike two photos are is the
# inner product of theirs.
#
# Below, the photos of four landmarks, and how alike each is to each. Photos of one landmark are more alike than those
# of two, so there are squares along the diagonal; but not clearly. More clearly is what training is for, and
# whitening.

# %%
import model as models
from landmarks.running.settings import ModelSettings

model = models.build_model(LANDMARKS, ModelSettings(loss="none", image_size=SIZE))
predictor = models.predictor(model)

some = sorted(names)[:4]
rows: list[tuple[int, np.ndarray]] = []
for shard in mirror.stream("train", mirror.shard_names("train")):
    chosen = [identity for identity in shard.ids if landmark_of[identity] in some]
    for ids, images in Batches(shard, chosen, SIZE, batch_size=16):
        embedded = models.predict(predictor, images, batch_size=16)["embedding"]
        rows += zip(landmark_of[ids], embedded, strict=True)
rows.sort(key=lambda row: row[0])
landmarks, embeddings = (np.array(column) for column in zip(*rows, strict=True))
print(embeddings.shape, "of length", np.linalg.norm(embeddings, axis=1).round(4).min())

figure, place = plt.subplots(figsize=(6, 5))
picture = place.imshow(embeddings @ embeddings.T, vmin=0.3, vmax=0.8)
place.set_yticks(np.searchsorted(landmarks, some), [names[landmark] for landmark in some])
place.set_xticks([])
figure.colorbar(picture, label="similarity")
plt.show()

# %% [markdown]
# ## Recognition, from start to end
#
# `recognition.py` does this with every shard, and more: the recipe `small-frozen` embeds each photo at two sizes,
# and *whitens*: what varies among the photos of one landmark counts less.


# %%
def run(*arguments: object) -> None:
    """Python with these arguments, its output below the cell. The notebook ends where it fails."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    print(done.stdout)
    done.check_returncode()


settings = ["--recipe", "small-frozen", "--image-size", SIZE, "--mirror", WORK / "mirror", "--work", WORK / "work"]
run(ROOT / "recognition.py", *settings)

# %% [markdown]
# It leaves a file of embeddings for each shard. Below they are seen from the two directions in which those of the
# train photos differ most. Whitening has seen the train photos of a landmark and puts them almost on one point, the
# star. What counts is how near the test photos come to the star of theirs, and that those of no landmark come near to
# none.

# %%
from landmarks.running.features_file import concatenate, load_features
from landmarks.scoring.solutions import read_recognition_solution

files = {split: sorted((WORK / "work/features" / split).glob("*.npz")) for split in ("train", "test")}
of_train, of_test = (concatenate([load_features(path) for path in files[split]]) for split in ("train", "test"))
solution = read_recognition_solution(WORK / "mirror/ground_truth/recognition_solution_v2.1.csv")
truth = {**solution.public, **solution.private}  # the landmarks that each test photo shows

centred = of_train.embeddings.astype("float32") - of_train.embeddings.mean(axis=0, dtype="float32")
directions = np.linalg.svd(centred, full_matrices=False)[2][:2]
figure, place = plt.subplots(figsize=(8, 5))


def scatter(embeddings: np.ndarray, **how: Any) -> None:
    across, up = directions @ embeddings.T.astype("float32")
    place.scatter(across, up, **how)


for number, landmark in enumerate(sorted(names)):
    scatter(of_train.embeddings[landmark_of[of_train.ids] == landmark], s=150, marker="*", color=f"C{number}")
    shows_it = [landmark in truth.get(identity, []) for identity in of_test.ids]
    scatter(of_test.embeddings[shows_it], s=20, color=f"C{number}", label=names[landmark])
scatter(
    of_test.embeddings[[not truth.get(identity) for identity in of_test.ids]],
    s=20, color="black", marker="x", label="no landmark",
)  # fmt: skip
place.legend(fontsize=8, bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# ## The nearest train photos
#
# Each test photo is searched among the train photos, exactly. Here are three test photos, and one that shows no
# landmark, with the nearest four train photos, and how alike they are. The landmark of the nearest one is the answer,
# and the likeness says how sure that is.

# %%
from landmarks.mirrors.pictures import photos_of
from landmarks.neighbours.search import search

found = search(files["test"], files["train"], k=4)


def shards_of(split: str, split_files: list[Path]) -> dict[str, str]:
    return {identity: path.stem for path in split_files for identity in load_features(path).ids}


photos = photos_of(mirror, "train", shards_of("train", files["train"]))
queries = photos_of(mirror, "test", shards_of("test", files["test"]))
shows_one = np.array([bool(truth.get(identity)) for identity in found.query_ids])
for row in [*np.flatnonzero(shows_one)[:3], np.flatnonzero(~shows_one)[0]]:
    query = found.query_ids[row]
    subject = " ".join(names[landmark] for landmark in truth.get(query, [])) or "no landmark"
    nearest = [
        (photos[identity], f"{similarity:.3f} {names[landmark_of[identity]]}")
        for identity, similarity in zip(found.index_ids[found.positions[row]], found.similarities[row], strict=True)
    ]
    show(side_by_side([(queries[query], f"test: {subject}"), *nearest]))

# %% [markdown]
# ## How sure is that?
#
# Photos whose truth is known tell how often a likeness is right, so the score in `recognition.csv` is a probability.
# GAP, the measure of the challenge, looks at their order alone: wrong answers and photos of no landmark should come
# last.

# %%
submission = pd.read_csv(WORK / "work/recognition.csv", index_col="id")
answer = submission["landmarks"].str.split(" ", expand=True)
right = np.array([int(landmark) in truth.get(identity, []) for identity, landmark in answer[0].items()])
nothing = np.array([not truth.get(identity) for identity in answer.index])
score = answer[1].astype(float).to_numpy()
groups = {"right": right, "wrong": ~right & ~nothing, "shows no landmark": nothing}
figure, place = plt.subplots(figsize=(7, 3))
scores = [score[group] for group in groups.values()]
place.hist(scores, bins=20, range=(0, 1), stacked=True, label=list(groups))
place.set_xlabel("score")
place.set_ylabel("test photos")
place.legend()
plt.show()

# %% [markdown]
# ## Retrieval
#
# `retrieval.py` takes the same embeddings of the index, finds the photos that are most like each test photo, and
# brings those of the same predicted landmark nearer.

# %%
run(ROOT / "retrieval.py", "--work", WORK / "work")

# %%
from landmarks.scoring.solutions import read_retrieval_solution

lists = pd.read_csv(WORK / "work/retrieval.csv", index_col="id")["images"].str.split(" ")
photos = photos_of(mirror, "index", shards_of("index", sorted((WORK / "work/features/index").glob("*.npz"))))
relevant = read_retrieval_solution(WORK / "mirror/ground_truth/retrieval_solution_v2.1.csv").public
query, wanted = next(iter(relevant.items()))
best = [
    (photos[identity], f"{place}. {'right' if identity in wanted else 'wrong'}")
    for place, identity in enumerate(lists[query][:5], 1)
]
print(f"the index has {len(wanted)} photos of the same landmark")
show(side_by_side([(queries[query], f"test: {names[truth[query][0]]}"), *best]))

# %% [markdown]
# ## Where to go on
#
# `docs/guide.md` takes your own photos through the same steps, and `docs/architecture.md` tells which file does what.
# [kaggle_recognition](kaggle_recognition.ipynb) runs all this on Kaggle.
