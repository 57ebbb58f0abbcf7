"""The only rank of a config, that prints its memory in use before and at most, in bytes, as JSON.

In use is what cannot be dropped: pages that no file has.

Usage: peak_memory.py CONFIG
"""

import json
import sys
import threading
from pathlib import Path

from alexnet.config import load
from alexnet.folder_archive import FolderArchive
from cluster.board import Board
from cluster.config import JobConfig


def in_use() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    raise AssertionError


def main() -> None:
    before = in_use()
    seen, end = [before], threading.Event()

    def look() -> None:
        while not end.wait(0.005):
            seen.append(in_use())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        from cluster.rank import train_rank

        config = load(JobConfig, Path(sys.argv[1]))
        desk = FolderArchive(config.run_path / "checkpoints").take_over("test")
        train_rank(config, Board(), desk)
    finally:
        end.set()
        thread.join()
    print(json.dumps([before, max(seen)]))


if __name__ == "__main__":
    main()
