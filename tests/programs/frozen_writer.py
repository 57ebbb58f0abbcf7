"""Writes checkpoint 6 from a desk, keeping one, and stops itself just before one of its renames.

Usage: frozen_writer.py DESK "NAME -> START OF THE NEW NAME"
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.background_writer import BackgroundWriter
from alexnet.errors import AlexnetError
from alexnet.folder_archive import FolderDesk


def main() -> None:
    desk, (name, new_name) = Path(sys.argv[1]), sys.argv[2].split(" -> ")

    def freeze(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename":
            source, target = (Path(path) for path in arguments[:2])
            if source.name == name and target.name.startswith(new_name):
                os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(freeze)
    writer = BackgroundWriter(
        FolderDesk(desk), keep=1, written=lambda step: print(f"written {step}")
    )
    writer.submit(6, {"x": np.ones(3, np.float32)}, {})
    try:
        writer.finish()
    except AlexnetError as error:
        print(error)


if __name__ == "__main__":
    main()
