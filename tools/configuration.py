"""Write docs/configuration.md: every setting with its type, default, bounds and description.

They are read from the JSON schema of `cluster.config.JobConfig`, which `alexnet config schema`
prints, so that the page says what the program checks.

Usage: python tools/configuration.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alexnet.config import schema
from cluster.config import JobConfig

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
ITEMS = {"integer": "integers", "number": "numbers", "string": "strings"}
Tree = dict[str, Any]

BEGINNING = """\
# Settings

A config is a YAML file of these groups; what it leaves out has the default. Behind it on the
command line, any setting can be changed as `KEY=VALUE` with its full key, as in `train.epochs=5`;
values are YAML. An unknown key, or a value out of its bounds, ends the command with 2 and one line
that names it and the nearest right name.

| command | does |
|---|---|
| `alexnet config show CONFIG [KEY=VALUE]...` | prints every setting, resolved, as YAML |
| `alexnet config diff A B` | prints the settings that are not the same in two configs |
| `alexnet config presets` | lists the configs that come with the program, and what they cost |
| `alexnet config schema` | prints the JSON schema of a config |

CONFIG is a file, or the name of a preset where there is no such file: `alexnet train catdog`.

Editors complete and check a config as it is typed, if they know its schema. Write it beside the
config, and name it in the config's first line; this is how the YAML language server (VS Code,
Neovim, Emacs, ...) wants it:

```
alexnet config schema > alexnet.schema.json
```
```yaml
# yaml-language-server: $schema=alexnet.schema.json
train:
  epochs: 20
```

`tools/configuration.py` writes this page.
"""


def page() -> str:
    """Return the page."""
    tree = schema(JobConfig)
    return BEGINNING + "".join(_section(tree, tree, ""))


def _section(whole: Tree, group: Tree, name: str) -> Iterator[str]:
    """A group's table, and those of the groups in it."""
    below = {key: _group(whole, each) for key, each in group["properties"].items()}
    yield f"\n## {name or 'The run'}\n\n{' '.join(group['description'].split())}\n\n"
    yield "| key | type | default | bounds | description |\n|---|---|---|---|---|\n"
    for key, each in group["properties"].items():
        if below[key] is None:
            yield _row(f"{name}.{key}".strip("."), each)
    for key, deeper in below.items():
        if deeper is not None:
            yield from _section(whole, deeper, f"{name}.{key}".strip("."))


def _group(whole: Tree, setting: Tree) -> Tree | None:
    """What a reference refers to, if the setting is one."""
    name = setting.get("$ref", "").removeprefix("#/$defs/")
    group: Tree | None = whole["$defs"].get(name)
    return group


def _row(key: str, setting: Tree) -> str:
    kinds = setting.get("anyOf", [setting])
    bounds = ", ".join(filter(None, map(_bounds, kinds)))
    default = f"`{json.dumps(setting['default'])}`"
    about = setting["description"].replace("|", "\\|")
    return f"| `{key}` | {' or '.join(map(_type, kinds))} | {default} | {bounds} | {about} |\n"


def _type(kind: Tree) -> str:
    """A type in words, or the values that there are."""
    values = kind.get("enum") or ([kind["const"]] if "const" in kind else [])
    if values:
        return ", ".join(f"`{value}`" for value in values)
    return f"list of {ITEMS[kind['items']['type']]}" if "items" in kind else str(kind["type"])


def _bounds(kind: Tree) -> str:
    limits = kind.get("items", kind)
    return ", ".join(f"{sign} {limits[name]}" for name, sign in BOUNDS.items() if name in limits)


if __name__ == "__main__":
    PAGE.write_text(page())
