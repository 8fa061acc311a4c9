# SPDX-License-Identifier: Apache-2.0
"""Write docs/dependencies.md: every package that an installation brings, with its licence.

Run it with ``python docs/dependencies.py`` where the lock is installed. What a package says about
its licence is taken from its metadata.
"""

import importlib.metadata
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "dependencies.md"
HEAD = """# What an installation brings

`constraints.txt` names every package that is installed with this one, with its version and the
hashes of its files; `pip install --require-hashes -r constraints.txt` takes nothing else. These are
they, with the licences that they state. `python docs/dependencies.py` writes this page.

| package | version | licence |
| --- | --- | --- |
"""


def locked(text: str) -> dict[str, str]:
    """Versions by name, as a lock has them."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(\S+)", text, re.MULTILINE))


def licence(name: str) -> str:
    """What a package states, or that it is for other systems than this one."""
    try:
        stated = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return "not for this system"
    if expression := stated.get("License-Expression"):
        return expression
    classified = [
        value.rpartition(" :: ")[2]
        for value in stated.get_all("Classifier", [])
        if value.startswith("License ::") and value != "License :: OSI Approved"
    ]
    text = (stated.get("License") or "").strip()
    return ", ".join(classified) or (text if 0 < len(text) <= 60 else "see its files")


def page() -> str:
    """The page as it should be."""
    lock = locked((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    rows = [f"| {name} | {version} | {licence(name)} |\n" for name, version in sorted(lock.items())]
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
