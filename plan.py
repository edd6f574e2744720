"""What would a run take? Hours, and what bounds them, network, disk and memory, stage by stage, before it starts.

    python plan.py --recipe arcface [--machines 8] [--device h100] [--mirror URL|DIR] [settings of recognition.py]

recognition.py and retrieval.py together, on an empty work folder. Without --device it is this machine, whose speed at
the recipe's network is measured, in seconds, and at products of matrices, by which all else goes. Machines of other
kinds have the rates that landmarks/training/rates.toml tells, each measured or estimated. The public mirror is known
without asking for it. The machines share the shards of what is embedded, and exact searches; one of them trains, or,
with --hosts, all.
"""

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from landmarks.running import command, threads
from landmarks.running import recipe as recipes
from landmarks.running.recipe import Recipe
from landmarks.running.said import size_of, time_of
from landmarks.training import rates

if TYPE_CHECKING:
    from landmarks.training.plan import Counts

PUBLIC = "https://s3.amazonaws.com/google-landmark"


def main() -> None:
    parser = command.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        epilog="Settings are those of recognition.py, which its --help explains.",
    )  # fmt: skip
    parser.add_argument("--machines", type=command.at_least(1), default=1, help="that share the shards (default 1)")
    parser.add_argument("--device", default="here", help="here (the default), or a kind of machine: cpu, t4, h100, ...")
    parser.add_argument("--megabytes", type=command.at_least(1), default=100, help="a second from the mirror, for each")
    parser.add_argument(
        "--times", type=command.at_least(1), default=1, help="as if the mirror were so many times as large"
    )
    given, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipes.load([*rest, f"--work={Path(folder) / 'work'}"])
        show(recipe, given.machines, given.device, given.megabytes, given.times)


def show(recipe: Recipe, machines: int, name: str, megabytes: int, times: int) -> None:
    """Print the plan."""
    device = rates.device("cpu" if name == "here" else name)
    cores = threads.cores() if name == "here" else device.cores
    command.prepare_backend()
    from landmarks.networks.devices import accelerated
    from landmarks.training import forecast, plan

    speed, products, cube = 1.0, device.rates.listed.value, plan.EIGENVECTORS
    if name == "here":  # as much slower or faster at all that is not measured as it is at products
        products = forecast.products_a_second()
        speed, cube = products / plan.PRODUCTS, forecast.eigenvectors_of_a_cube(products)
        device = device.times(speed)
    counts = count(recipe).times(times)
    by_head = recipe.recognition.recognizer == "head" and recipe.verification.verify == "off"
    splits = [split for split in counts.photos if split != "train" or not by_head]
    seen = sum(counts.photos[split] for split in splits)
    has_accelerator = accelerated() if name == "here" else device.accelerator
    decoded = device.rates.decode.value * device.cores
    machine = plan.Machine(decoded, megabytes * 1e6, products, plan.SAVED * speed, has_accelerator, cube)
    stages, dimensions, by = [], 0, []
    for one in [recipe, *recipe.beside()]:
        needs = forecast.needs(
            one.model, one.training, one.embedding, counts.learnt, counts.classes, seen, counts.shards["train"],
            bool(one.run.beside), has_accelerator,
        )  # fmt: skip
        dimensions += needs.dimensions
        size, batch = one.model.image_size, one.training.batch_size
        if name == "here":
            seconds = forecast.seconds_of_a_pass(needs.network, size, batch, one.embedding.engine)
            source = "measured now"
        else:
            like, rate = device.pass_of(one.model.backbone)
            seconds = forecast.multiplications(needs.network, size) / rate.value
            source = f"{rate.how}, {rate.date}, as {like}: {rate.source}"
        by.append(f"{one.model.backbone} at {size} px: {1 / seconds:,.0f} photos/s ({source})")
        pixels = counts.learnt * size**2 * 3
        cached = min(1, recipe.source.cache_size * 1e9 / pixels) if recipe.source.cache else 0
        stages += plan.network_stages(
            needs, seconds, machine, counts, one.training, one.embedding, machines, splits, cached,
            one.run.checkpoint_minutes, machines if recipe.run.hosts else 1,
        )  # fmt: skip
    stages += plan.search_stage(counts, dimensions, device, recipe.run, recipe.recognition, recipe.retrieval, machines)
    stages += plan.verification_stage(counts, device, machine, recipe.verification, machines)
    stages.append(plan.Stage("start", 2 * plan.START / speed, "Keras", 1))

    photos = ", ".join(f"{number:,} {split}" for split, number in counts.photos.items())
    print(f"{recipe.run.recipe} on {machines} x {name}: {device.about if name != 'here' else f'{cores} cores'}")
    print(f"{photos} photos; {counts.learnt:,} are learnt from, of {counts.classes:,} landmarks")
    print(*by, sep="\n")
    print(f"\n{'stage':18}{'time':>12}  {'bound by':18}{'machines':>8}{'network':>9}{'disk':>9}{'memory':>9}")
    for stage in stages:
        sizes = "".join(f"{size_of(size) if size else '':>9}" for size in stage[-3:])
        print(f"{stage.name:18}{time_of(stage.seconds):>12}  {stage.bound_by:18}{stage.machines:8}{sizes}")
    seconds, network, disk = (sum(getattr(one, of) for one in stages) for of in ("seconds", "network", "disk"))
    sizes = "".join(f"{size_of(size):>9}" for size in (network, disk, max(stage.memory for stage in stages)))
    print(f"{'all':18}{time_of(seconds):>12}{'':28}{sizes}")
    for stage in stages:
        if name != "here" and stage.memory > device.memory:
            print(f"{stage.name}: no such machine holds {size_of(stage.memory)}, it has {size_of(device.memory)}")


def count(recipe: Recipe) -> "Counts":
    """What the mirror holds, which is asked for it unless it is the public one."""
    from landmarks.training import plan

    source, photos = recipe.source.mirror.rstrip("/"), recipe.photos
    if source == PUBLIC and photos.clean in ("", "true") and not photos.classifier:
        return plan.public(bool(photos.clean))
    from landmarks.mirrors.open import open_mirror  # pandas, which --help need not wait for

    mirror = open_mirror(source, recipe.run.work / "mirror", recipe.training.seed, recipe.source)
    mirror.require("train", "test")
    return plan.counted(mirror, photos, recipe.run.work, "://" in source)


if __name__ == "__main__":
    command.run(main)
