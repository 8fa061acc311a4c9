# SPDX-License-Identifier: Apache-2.0
"""The compose file describes the same system as the tests of several machines."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import prefect.settings
import pytest
import yaml

from prefect_cometapi.runway import CometAPISettings

FILE = Path(__file__).parents[2] / "deployments" / "compose.yaml"


@pytest.fixture(scope="module")
def services() -> dict:
    """Return the services of the file, with its anchors resolved."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"]


@pytest.mark.parametrize(("broken", "status"), [("", 0), ("services: []\n", 1)])
def test_it_keeps_the_schema_of_compose_files(tmp_path, broken, status):
    """The compose specification's own schema accepts the file and refuses a broken one."""
    file = tmp_path / "compose.yaml"
    file.write_text(broken or FILE.read_text(encoding="utf-8"), encoding="utf-8")
    words = ("-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file))
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout


def test_every_image_has_a_version(services):
    """Every image has a version, and Prefect's is the installed one."""
    tested = importlib.metadata.version("prefect")
    for service in services.values():
        name, _, version = service["image"].partition(":")
        assert re.match(r"\d+\.\d+", version), name
        if name == "prefecthq/prefect":
            assert version.startswith(f"{tested}-python3.")
        if "build" in service:
            assert (name, version) == (
                "prefect-cometapi",
                importlib.metadata.version("prefect-cometapi"),
            )
            context = FILE.parent / service["build"]["context"]
            assert (context / service["build"]["dockerfile"]).is_file()


def test_every_setting_exists(services):
    """Every setting exists in this package or in Prefect."""
    ours = {f"COMETAPI_{name.upper()}" for name in CometAPISettings.model_fields}
    names = {name for service in services.values() for name in service.get("environment", {})}
    assert {name for name in names if name.startswith("COMETAPI_")} <= ours
    # Only the Redis package reads its settings.
    theirs = {name for name in names if name.startswith("PREFECT_")} - {"PREFECT_PASSWORD"}
    unknown = {name for name in theirs if not hasattr(prefect.settings, name)}
    assert unknown == {"PREFECT_REDIS_MESSAGING_HOST"}


def test_no_password_stands_in_it():
    """The file contains no password and requires each one from the environment."""
    text = FILE.read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{(\w+):\?set \1 in \.env\}", text)) == {
        "COMETAPI_KEY",
        "LEDGER_PASSWORD",
        "PREFECT_PASSWORD",
    }


def test_all_workers_share_ledger_storage_and_results(services):
    """All workers share the ledger, the storage and the results, as `doctor` requires."""
    worker = services["worker"]
    assert worker["environment"]["COMETAPI_LEDGER_URL"].startswith("postgresql://")
    mounted = {volume.partition(":")[2] for volume in worker["volumes"]}
    assert {
        worker["environment"]["COMETAPI_STORAGE"],
        worker["environment"]["PREFECT_LOCAL_STORAGE_PATH"],
    } == mounted
