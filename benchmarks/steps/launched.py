"""A rank of a training that `horovodrun` launches: what a rank does under Ray, and its steps told.

Usage: launched.py CONFIG KEY=VALUE...
"""

import os
import sys
import threading
import time
from pathlib import Path

from rich.console import Console

from alexnet.config import load
from alexnet.folder_archive import FolderArchive
from cluster.board import Board
from cluster.config import JobConfig
from cluster.rank import train_rank
from cluster.screen import Screen
from cluster.watch import POLL_SECONDS


def main() -> None:
    """Train; as rank 0, print each record that is left on the board."""
    config = load(JobConfig, Path(sys.argv[1]), sys.argv[2:]).with_absolute_paths()
    board, rank = Board(), os.environ["HOROVOD_RANK"]
    if rank == "0":
        threading.Thread(target=show, args=(board,), daemon=True).start()
    config.run_path.mkdir(parents=True, exist_ok=True)
    archive = FolderArchive(config.run_path / f"checkpoints-{rank}")  # only rank 0 uses its own
    train_rank(config, board, archive.take_over("bench"))


def show(board: Board) -> None:
    """Print what the driver would."""
    screen = Screen(Console())
    while True:
        for record in board.look().records:
            screen.record(record)
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main()
