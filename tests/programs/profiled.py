"""A rank that trains as a config says, with all the hooks that it has under Ray.

Usage: profiled.py CONFIG
"""

import os
import sys
from pathlib import Path

from alexnet.config import load
from alexnet.folder_archive import FolderArchive
from cluster.board import Board
from cluster.config import JobConfig
from cluster.rank import train_rank


def main() -> None:
    config = load(JobConfig, Path(sys.argv[1]))
    config.run_path.mkdir(exist_ok=True)
    archive = FolderArchive(config.run_path / f"checkpoints-{os.environ['HOROVOD_RANK']}")
    train_rank(config, Board(), archive.take_over("test"))


if __name__ == "__main__":
    main()
