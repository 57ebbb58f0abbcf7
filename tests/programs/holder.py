"""Holds the lease of a run directory until it is told to end, or has lost it.

Usage: holder.py RUN [HOST]
"""

import sys
import time
from pathlib import Path

from alexnet.errors import AlexnetError
from alexnet.folder_archive import FolderArchive
from cluster import lease
from cluster.lease import Lease


def main() -> None:
    if len(sys.argv) > 2:  # as if on another machine
        lease.this_machine = lambda: sys.argv[2]
    run = Path(sys.argv[1])
    try:
        with Lease(run, FolderArchive(run / "checkpoints"), renew=0.2, expire=2.0) as held:
            print(f"desk in {held.next_desk()}", flush=True)
            while True:
                held.check()
                time.sleep(0.05)
    except AlexnetError as error:
        print(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
