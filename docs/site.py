# SPDX-License-Identifier: Apache-2.0
"""Copy the pages of the site to build/pages, with links that work there, and build the site.

The same Markdown is read in the repository and on the site. There, README.md is the first page, and
a link to a file that the site does not have leads into the repository. ``just site`` runs it.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "build" / "pages"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
FILES, RAW = f"{REPOSITORY}/blob/main/", f"{REPOSITORY}/raw/main/"
"""Beginnings of the addresses of files in the repository: as a page, and as their content."""

AT_THE_TOP = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
_TARGET = re.compile(r"(\]\(|^\[[^\]]+\]: )([^)\s]+)", re.MULTILINE)


def published() -> dict[str, str]:
    """Return the files of the site, by their path in the repository."""
    docs = ROOT / "docs"
    files = [*docs.glob("*.md"), *docs.glob("*.json"), *docs.glob("images/*")]
    files += docs.glob("examples/*.py")
    names = [file.relative_to(docs).as_posix() for file in sorted(files)]
    return AT_THE_TOP | {f"docs/{name}": name for name in names}


def site_link(page: str, target: str, files: dict[str, str]) -> str:
    """Return the target of a link of a page for the site; pure.

    Args:
        page: Path of the page in the repository.
        target: Target as written: relative, an anchor, or an address.
        files: Files of the site, by their path in the repository.
    """
    place, mark, anchor = target.partition("#")
    for start in (FILES, RAW):
        if place.startswith(start):
            path = place.removeprefix(start)
            break
    else:
        if not place or re.match(r"[a-z]+:", place):
            return target
        path = os.path.normpath(PurePosixPath(page).parent / place)
    if path not in files:
        return f"{FILES}{path}{mark}{anchor}"
    folder = PurePosixPath(files[page]).parent
    return f"{os.path.relpath(files[path], folder)}{mark}{anchor}"


def with_links(page: str, text: str, files: dict[str, str]) -> str:
    """Return the text of a page with the links of the site; code blocks stay as they are; pure."""
    parts = re.split(r"(^```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(
        part
        if part.startswith("```")
        else _TARGET.sub(lambda found: found[1] + site_link(page, found[2], files), part)
        for part in parts
    )


def copy_pages(to: Path) -> None:
    """Write the files of the site into a new folder."""
    files = published()
    shutil.rmtree(to, ignore_errors=True)
    for path, name in files.items():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".md"):
            text = (ROOT / path).read_text(encoding="utf-8")
            (to / name).write_text(with_links(path, text, files), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / path, to / name)


if __name__ == "__main__":
    copy_pages(PAGES)
    zensical = Path(sysconfig.get_path("scripts")) / "zensical"
    sys.exit(
        subprocess.run([zensical, "build", "--strict", "--clean"], cwd=ROOT, check=False).returncode
    )
