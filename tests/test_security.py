"""What others send or leave behind is data, never code, and stays where it belongs."""

import json
import pickle
import shutil
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from alexnet.checkpoint import read
from alexnet.data.shards import ShardSet
from alexnet.errors import DataError
from alexnet.folder_archive import FolderArchive
from cluster.rendezvous import Rendezvous, assign_ranks

LOOPBACK = "127.0.0.1"


class Bomb:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.fixture
def hit(tmp_path: Path) -> Path:
    path = tmp_path / "hit"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.exists()  # it works
    path.unlink()
    return path


@pytest.mark.parametrize("scope", ["global", "runfunc", "worker_addresses", "put_host_addresses"])
def test_a_pickle_put_at_the_rendezvous_is_never_loaded(hit: Path, scope: str) -> None:
    """CVE-2024-10190: Horovod's elastic server loads it. This one keeps bytes."""
    with Rendezvous(LOOPBACK, slots := assign_ranks({LOOPBACK: 2})) as rendezvous:
        port = rendezvous.environment(slots[0], "lo", 5)["HOROVOD_GLOO_RENDEZVOUS_PORT"]
        address, bomb = f"http://{LOOPBACK}:{port}/{scope}/0", pickle.dumps(Bomb(hit))
        request = urllib.request.Request(address, data=bomb, method="PUT")
        assert urllib.request.urlopen(request).status == 200
        assert urllib.request.urlopen(address).read() == bomb
    assert not hit.exists()


@pytest.mark.parametrize("part", ["state.safetensors", "checkpoint.json", "manifest.json"])
def test_a_pickle_in_a_checkpoint_is_refused_and_never_loaded(
    tmp_path: Path, hit: Path, part: str
) -> None:
    desk = FolderArchive(tmp_path / "checkpoints").take_over("test")
    path = desk.write(1, {"x": np.ones(3)}, {})
    (path / part).write_bytes(pickle.dumps(Bomb(hit)))
    with pytest.raises(DataError):
        read(path)
    assert not hit.exists()


@pytest.mark.parametrize("file", ["/etc/passwd", "../secret.parquet", "a/../../secret.parquet"])
def test_a_set_names_no_file_outside_of_it(tmp_path: Path, digits: Path, file: str) -> None:
    copy = tmp_path / "set"
    shutil.copytree(digits, copy)
    tree = json.loads((copy / "manifest.json").read_text())
    tree["splits"]["train"]["shards"][0]["file"] = file
    (copy / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match="outside of the set"):
        ShardSet.open(copy)
