"""What is said to people: lines beside moving bars, sizes, durations."""

import sys


def say(line: str) -> None:
    """A line on stderr, above any bar that is moving there."""
    from tqdm import tqdm  # a twentieth of a second, which --help need not wait for

    tqdm.write(line, file=sys.stderr)


def size_of(count: float) -> str:
    """So many bytes, for people: 850MB."""
    from tqdm import tqdm

    return tqdm.format_sizeof(count, "B")


def time_of(seconds: float) -> str:
    """So long, for people, in words: 12 minutes."""
    if seconds < 90:
        return f"{seconds:.0f} second{'s' * (round(seconds) != 1)}"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"
