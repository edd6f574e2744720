"""What was made of a folder or a list of photos, in one table."""

from collections.abc import Iterable

import pandas as pd

from landmarks.mirrors.base import SPLITS

KINDS_LISTED = 12


def kinds(reasons: Iterable[str]) -> list[tuple[str, int]]:
    """How many reasons there are of a kind, most first; what they say in brackets are details of one photo."""
    counts = pd.Series([reason.partition(" (")[0] for reason in reasons], dtype=object).value_counts()
    listed = list(counts[:KINDS_LISTED].items())
    return listed + ([("other reasons", counts[KINDS_LISTED:].sum())] if len(counts) > KINDS_LISTED else [])


def summary(name: str, photos: pd.DataFrame, reasons: Iterable[str]) -> str:
    """The landmarks, the photos by split, and what was passed over and why: a line each, under the mirror's name.

    Args:
        photos: what was written: `landmark_id` (NA: of no landmark), `split` and maybe `group`, as `Survey.photos`.
        reasons: one for each file that was passed over.
    """
    counts = photos["split"].value_counts()
    splits = photos.groupby("landmark_id")["split"].nunique()
    passed_over = kinds(reasons)
    none = photos["landmark_id"].isna().sum()
    incomplete = (splits < len(SPLITS)).sum() if len(counts) == len(SPLITS) else 0
    alike = photos["group"].duplicated(keep=False).sum() if "group" in photos else 0
    lines = [
        ("landmarks", len(splits)),
        *([("  without a test or index photo", incomplete)] if incomplete else []),
        ("photos", len(photos)),
        *((f"  {split}", counts.get(split, 0)) for split in SPLITS),
        *([("  of no landmark, among these", none)] if none else []),
        *([("  near-duplicates, kept together (near_duplicates.csv)", alike)] if alike else []),
        ("passed over (failed.csv)" if passed_over else "passed over", sum(count for _, count in passed_over)),
        *((f"  {kind}", count) for kind, count in passed_over),
    ]
    width = max(len(what) for what, _ in lines)
    digits = max(len(f"{count:,}") for _, count in lines)
    return "\n".join([f"{name}:", *(f"  {what:<{width}}  {count:>{digits},}" for what, count in lines)])
