"""Ask the advisory database of the package index about every package that is installed anywhere.

What SECURITY.md names in a table, with the reason why it does no harm here, is not asked about
again. Exit code 1: there is an advisory. An index that keeps no advisories (a mirror) leaves
packages unchecked; that is said, and no failure, since it is not theirs.

Usage: python tools/audit.py
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
EXCEPTION = re.compile(r"^\| (CVE-\d+-\d+) \|", re.MULTILINE)


def exceptions() -> list[str]:
    """Return the advisories that SECURITY.md answers."""
    return EXCEPTION.findall((ROOT / "SECURITY.md").read_text())


def ask() -> list[dict[str, Any]]:
    """Return what pip-audit knows about each package: its `vulns`, or a `skip_reason`."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    command += ["--require-hashes", "--disable-pip"]
    command += [f"--requirement={lock}" for lock in LOCKS]
    command += [f"--ignore-vuln={each}" for each in exceptions()]
    done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout:
        raise SystemExit(f"audit: {done.stderr.strip().splitlines()[-1]}")
    found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    return found


def main() -> int:
    """Print what was found and return the exit code."""
    packages = ask()
    unchecked = [each["name"] for each in packages if "skip_reason" in each]
    advisories = [
        f"{each['name']} {each['version']}: {', '.join([found['id'], *found['aliases']])}"
        for each in packages
        for found in each.get("vulns", ())
    ]
    print(*advisories, sep="\n", end="\n" if advisories else "")
    if unchecked:
        some = ", ".join(unchecked[:3]) + (", ..." if len(unchecked) > 3 else "")
        print(f"{len(unchecked)} NOT CHECKED: this index has no advisories on them ({some})")
    checked = len(packages) - len(unchecked)
    print(f"{len(advisories)} advisories on {checked} packages, besides {', '.join(exceptions())}")
    return 1 if advisories else 0


if __name__ == "__main__":
    sys.exit(main())
