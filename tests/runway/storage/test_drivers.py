# SPDX-License-Identifier: Apache-2.0
"""An object store whose driver is not installed is refused with the command that installs it."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from fsspec.registry import known_implementations
from packaging.requirements import Requirement

from prefect_cometapi.runway.storage.drivers import EXTRAS, failure_of

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WITHOUT = """
import json, sys
sys.modules.update(s3fs=None, gcsfs=None, adlfs=None)  # the import of each fails
from prefect_cometapi.runway.batch.manifest import read_rows
from prefect_cometapi.runway.errors import CometAPIError
from prefect_cometapi.runway.sources.files import open_file
from prefect_cometapi.runway.storage.factory import open_storage

USES = {
    "storage": lambda scheme: open_storage(f"{scheme}://bucket/videos").check(),
    "source": lambda scheme: open_file(f"{scheme}://bucket/cat.png"),
    "manifest": lambda scheme: read_rows(f"{scheme}://bucket/rows.csv"),
}
said = {}
for scheme in sys.argv[1:]:
    for use, tried in USES.items():
        try:
            tried(scheme)
        except CometAPIError as error:
            said[f"{scheme} {use}"] = str(error)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """Return the error of each use of each scheme, in a process without any driver."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *EXTRAS], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("use", ["storage", "source", "manifest"])
@pytest.mark.parametrize("scheme", EXTRAS)
def test_a_missing_driver_names_its_extra(said, scheme, use):
    """Storage, source and manifest each name the command that installs the driver."""
    assert f'pip install "prefect-cometapi[{EXTRAS[scheme]}]"' in said[f"{scheme} {use}"]


@pytest.mark.parametrize("scheme", sorted(EXTRAS.keys() & known_implementations.keys()))
def test_the_extra_installs_the_driver_that_fsspec_imports(scheme):
    """The extra of a scheme has the package that fsspec loads for it."""
    wanted = map(Requirement, PROJECT["optional-dependencies"][EXTRAS[scheme]])
    driver = known_implementations[scheme]["class"].partition(".")[0]
    assert driver in {need.name for need in wanted}


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("s3://bucket/cat.png", OSError("no such bucket")),
        ("ftp://host/cat.png", ImportError("no module named x")),
    ],
)
def test_another_error_names_no_extra(url, error):
    """An error that no extra can help with is reported as it is."""
    assert failure_of(url, error) == str(error)
