"""Exit with 0 if all is well in this container: where a Ray node runs, that it is alive.

A container without one (`alexnet prepare`, a submitter) is well as long as it runs.
"""

import sys
from pathlib import Path
from urllib.request import urlopen

AGENT = "http://127.0.0.1:52365/api/local_raylet_healthz"


def has_node() -> bool:
    """Tell whether a process here is a Ray node's raylet."""
    for process in Path("/proc").glob("[0-9]*/comm"):
        try:
            if process.read_text().strip() == "raylet":
                return True
        except OSError:  # it has just ended
            continue
    return False


def main() -> int:
    """Return the exit code."""
    if not has_node():
        return 0
    try:
        with urlopen(AGENT, timeout=5) as answer:
            return 0 if answer.status == 200 else 1
    except OSError as error:
        print(f"the Ray node does not answer: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
