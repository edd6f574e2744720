"""Read a whole mirror and name what is wrong with it."""

from collections import Counter
from functools import partial

from landmarks.mirrors import images
from landmarks.mirrors.base import SPLITS, Mirror
from landmarks.mirrors.images import UnreadablePhoto
from landmarks.mirrors.open import open_mirror
from landmarks.mirrors.shards import DamagedShard, Shard, TarShard
from landmarks.running.command import check_stop
from landmarks.running.files import md5
from landmarks.running.progress import Progress
from landmarks.running.settings import MirrorSettings
from landmarks.running.threads import in_threads

FAULTS_LISTED = 20  # of each kind


def check(mirror: str) -> int:
    """Read a whole mirror and print each fault; 1 if there is any, else 0."""
    source = open_mirror(mirror, settings=MirrorSettings(strict=True))
    source.require("train")
    faults = [fault for split in SPLITS if source.shard_names(split) for fault in _check_split(source, split)]
    for fault in faults:
        print(fault)
    print(f"{mirror}: {len(faults)} faults")
    return int(bool(faults))


def _check_split(source: Mirror, split: str) -> list[str]:
    listed = set(source.ids(split))
    seen: Counter[str] = Counter()
    shard_faults, refused, unreadable = [], [], []
    names = source.shard_names(split)
    for name in Progress(names, split, unit=" shards"):
        check_stop()
        place = f"{split}/{name}"
        try:
            for shard in source.stream(split, [name]):
                seen.update(shard.ids)
                refused += [f"{place}: member {member!a} is passed over: {why}" for member, why in shard.refused]
                readable = in_threads(partial(_fault, shard), shard.ids, ahead=256)
                for identity, why in zip(shard.ids, readable, strict=True):
                    check_stop()
                    if why:
                        unreadable.append(f"{place}: {identity} cannot be read: {why}")
                expected = source.published_md5(split, name)
                if expected and isinstance(shard, TarShard) and md5(shard.path) != expected:
                    shard_faults.append(f"{place}.tar: md5 differs from md5sum/{split}/md5.{name}.txt")
        except DamagedShard as damage:
            shard_faults.append(str(damage))
    kinds = [
        shard_faults,
        refused,
        unreadable,
        [f"{split}: {identity} is in {count} shards" for identity, count in seen.items() if count > 1],
        [
            f"{split}: {identity} is in a shard but not in metadata/{split}.csv"
            for identity in sorted(set(seen) - listed)
        ],
        [f"{split}: {identity} is in metadata/{split}.csv but in no shard" for identity in sorted(listed - set(seen))],
    ]
    faults = []
    for kind in kinds:
        faults += kind[:FAULTS_LISTED]
        if len(kind) > FAULTS_LISTED:
            faults.append(f"{split}: and {len(kind) - FAULTS_LISTED:,} more like the last")
    return faults


def _fault(shard: Shard, identity: str) -> str | None:
    try:
        images.decode(shard.read(identity), 64)
    except (OSError, UnreadablePhoto) as error:
        return str(error)
    return None
