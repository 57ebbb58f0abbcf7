import json
import os
from pathlib import Path
from typing import Any

import pytest

from alexnet.records import JsonLines, read_records
from tests.disks import full_disk


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines_keep_each_record_with_its_time(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl", restored_step=0)
    sink({"kind": "step", "step": 10, "loss": 0.1})
    assert [line["loss"] for line in lines(tmp_path / "metrics.jsonl")] == [0.1]  # at once
    sink({"kind": "step", "step": 20, "loss": 0.2})
    found = lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in found] == [10, 20]
    assert found[0]["time"] > 1.7e9
    assert found[0]["time"] <= found[1]["time"]


@pytest.mark.parametrize(
    ("restored_step", "kept"), [(0, []), (10, [10]), (25, [10, 20, 20]), (99, [10, 20, 20, 30])]
)
@pytest.mark.parametrize("half", ["", '{"kind": "step", "st', '{"kind": "step", "step": 5}'])
def test_json_lines_go_on_behind_the_restored_step(
    tmp_path: Path, restored_step: int, kept: list[int], half: str
) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [{"kind": "step", "step": step} for step in (10, 20, 20, 30)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + half)
    sink = JsonLines(path, restored_step)
    assert [line["step"] for line in lines(path)] == kept
    sink({"kind": "step", "step": 11})
    assert [line["step"] for line in lines(path)] == [*kept, 11]


@pytest.mark.parametrize(
    "damage", [b"\x00\x00\xff\n", b'{"kind": "st\n', b"[]\n", b'{"step": "3"}\n']
)
def test_a_damaged_line_is_left_out(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage + b'{"step": 2}\n')
    assert read_records(path) == [{"step": 1}, {"step": 2}]
    JsonLines(path, restored_step=9)
    assert lines(path) == [{"step": 1}, {"step": 2}]


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """Whoever holds the old one open, a rank left behind say, writes to nobody's file."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    with path.open("a") as left_behind:
        before = os.fstat(left_behind.fileno()).st_ino
        JsonLines(path, restored_step=9)
        left_behind.write('{"step": 2}\n')
    assert path.stat().st_ino != before
    assert lines(path) == [{"step": 1}]
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_costs_records_and_not_the_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path, restored_step=0)
    sink({"step": 1})
    with full_disk(path.stat().st_size + 5):
        sink({"step": 2})
        sink({"step": 3})
    sink({"step": 4})
    assert [record["step"] for record in read_records(path)] == [1, 4]
