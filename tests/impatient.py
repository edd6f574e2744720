"""recognition.py on several hosts, of which one is lost after 10 seconds of silence rather than a minute."""

import sys
from pathlib import Path

SILENT_SECONDS = 10

if __name__ in ("__main__", "__mp_main__"):
    sys.path[0] = str(Path(__file__).parents[1])
    import recognition
    from landmarks.running import command

if __name__ == "__main__":
    command.run(recognition.main)
if __name__ == "__mp_main__":  # the process of its own in which it trains
    command.prepare_backend()
    from landmarks.networks import hosts

    hosts.SILENT_SECONDS = SILENT_SECONDS
