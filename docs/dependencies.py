# SPDX-License-Identifier: Apache-2.0
"""Write docs/dependencies.md and docs/sbom.cdx.json: installed packages and their licences.

Run it with ``python docs/dependencies.py`` where the lock is installed. What a package says about
its licence and about what it needs is taken from its metadata.
"""

import importlib.metadata
import re
import tomllib
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "dependencies.md"
SBOM = ROOT / "docs" / "sbom.cdx.json"
CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = CONFIGURATION["project"]
BUILD = CONFIGURATION["build-system"]["requires"]
NOT_HERE = "not for this system"
HEAD = """# Installed packages

`constraints.txt` lists every package that is installed with this one, and setuptools, which builds
it, with version and file hashes; `pip install --require-hashes -r constraints.txt` installs nothing
else. Build from source with `--no-build-isolation`: otherwise pip downloads an unlocked setuptools.
The table has the licences that the packages state. [sbom.cdx.json](sbom.cdx.json) has the
same in machine-readable form (CycloneDX 1.6), with the dependencies between the packages.
`python docs/dependencies.py` writes both.

To check the packages against published advisories, with network access to a database of them:
`pipx run pip-audit --require-hashes --disable-pip -r constraints.txt`.

| package | version | licence |
| --- | --- | --- |
"""


def locked(text: str) -> dict[str, str]:
    """Return the versions in a lock file, by name."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(\S+)", text, re.MULTILINE))


def licence(name: str) -> str:
    """Return the licence that a package states, or a note if it is not for this system."""
    try:
        stated = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return NOT_HERE
    if expression := stated.get("License-Expression"):
        return expression
    classified = [
        value.rpartition(" :: ")[2]
        for value in stated.get_all("Classifier", [])
        if value.startswith("License ::") and value != "License :: OSI Approved"
    ]
    text = (stated.get("License") or "").strip()
    return ", ".join(classified) or (text if 0 < len(text) <= 60 else "see its files")


def needs() -> dict[str, set[str]]:
    """Return the dependencies of each package on this system, with the extras of this one."""
    found: dict[str, set[str]] = {}
    left = [(PROJECT["name"], "", [*PROJECT["dependencies"], *BUILD])]
    seen: set[tuple[str, str]] = set()
    while left:
        name, extra, wanted = left.pop()
        needed = [need for text in wanted if _holds(need := Requirement(text), extra)]
        found.setdefault(name, set()).update(canonicalize_name(need.name) for need in needed)
        for one in {
            (canonicalize_name(need.name), of) for need in needed for of in {"", *need.extras}
        }:
            if one not in seen:
                seen.add(one)
                left.append((*one, importlib.metadata.requires(one[0]) or []))
    return found


def _holds(need: Requirement, extra: str) -> bool:
    return need.marker is None or need.marker.evaluate({"extra": extra})


def page(lock: dict[str, str]) -> str:
    """Return the content of the page."""
    rows = [f"| {name} | {version} | {licence(name)} |\n" for name, version in sorted(lock.items())]
    return HEAD + "".join(rows)


def sbom(lock: dict[str, str]) -> str:
    """Return the SBOM in CycloneDX, without values that differ between runs."""
    bom, licences = Bom(), LicenseFactory()
    bom.metadata.timestamp = None  # pyright: ignore[reportAttributeAccessIssue]

    def component(name: str, version: str, stated: str) -> Component:
        purl = PackageURL("pypi", name=name, version=version)
        return Component(
            name=name,
            version=version,
            type=ComponentType.LIBRARY,
            purl=purl,
            bom_ref=str(purl),
            licenses=[] if stated == NOT_HERE else [licences.make_from_string(stated)],
        )

    ours = component(PROJECT["name"], PROJECT["version"], PROJECT["license"])
    parts = {
        name: component(name, version, licence(name)) for name, version in sorted(lock.items())
    }
    bom.metadata.component = ours
    for part in parts.values():
        bom.components.add(part)
    for name, needed in needs().items():
        bom.register_dependency(parts.get(name, ours), [parts[each] for each in sorted(needed)])
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    return re.sub(r'^ "serialNumber": .*\n', "", text, flags=re.MULTILINE) + "\n"


if __name__ == "__main__":
    versions = locked((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    PAGE.write_text(page(versions), encoding="utf-8")
    SBOM.write_text(sbom(versions), encoding="utf-8")
