"""Holds the lease of a run directory until it is told to end, or has lost it.

Usage: holder.py RUN [HOST]
"""

import socket
import sys
import time
from pathlib import Path

from alexnet.errors import AlexnetError
from alexnet.folder_archive import FolderArchive
from cluster.lease import Lease


def main() -> None:
    if len(sys.argv) > 2:  # as if on another machine
        socket.gethostname = lambda: sys.argv[2]
    run = Path(sys.argv[1])
    try:
        with Lease(run, FolderArchive(run / "checkpoints"), renew=0.2, expire=2.0) as lease:
            print(f"desk in {lease.next_desk()}", flush=True)
            while True:
                lease.check()
                time.sleep(0.05)
    except AlexnetError as error:
        print(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
