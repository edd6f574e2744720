"""The bar of a long step: it moves on a terminal; a log gets a line a minute, and one when the step ends."""

import io
import sys
import time
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 60  # between two lines, whatever steps they are of
METRICS = 3  # beside a bar


class Progress(tqdm):
    """tqdm, but that what is no terminal gets whole lines, without a bar, and no control characters.

    A bar in another one has `leave=False`, and no line when it ends.
    """

    _said = time.monotonic()  # when the last line went to the log

    def __init__(self, *arguments: Any, **options: Any):
        self.to_log = not sys.stderr.isatty()
        if self.to_log:
            options |= {"file": io.StringIO(), "ncols": 0}  # which takes tqdm's moves of the cursor
        super().__init__(*arguments, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """What tqdm calls to show its state, and lets be overridden for that; at the end with `disable` set."""
        if not self.to_log:
            super().display(msg, pos)
        elif msg is None and ((self.disable and self.leave) or time.monotonic() - Progress._said >= LOG_SECONDS):
            Progress._said = time.monotonic()
            print(self, file=sys.stderr, flush=True)

    def show(self, metrics: dict[str, float]) -> None:
        """Show the first three of them beside the bar."""
        first = list(metrics.items())[:METRICS]
        self.set_postfix({name: f"{value:.3g}" for name, value in first}, refresh=False)
