"""Errors of libraries in one line that says what was wrong."""

import pytest

from cluster.errors import one_line

DEAD = """The actor died because of an error in its creation task, \x1b[36mray::Worker\x1b[39m
  File "worker.py", line 7, in __init__
Traceback (most recent call last):
  File "loader.py", line 80, in load
ModuleNotFoundError: No module named 'cluster'
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "RuntimeError"),
        ("plain", "plain"),
        ("\n  first\n second\n", "first"),
        ("\x1b[31mred\x1b[0m words\nmore", "red words"),
        (DEAD, "ModuleNotFoundError: No module named 'cluster'"),
    ],
)
def test_one_line_is_the_first_or_what_ends_a_traceback(text: str, line: str) -> None:
    assert one_line(RuntimeError(text)) == line
