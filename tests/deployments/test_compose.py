# SPDX-License-Identifier: Apache-2.0
"""The compose file describes the system that the tests of several machines run."""

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
    """What it starts, with its anchors resolved."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"]


@pytest.mark.parametrize(("broken", "status"), [("", 0), ("services: []\n", 1)])
def test_it_keeps_the_schema_of_compose_files(tmp_path, broken, status):
    """The compose specification's own schema takes it, and would refuse another."""
    file = tmp_path / "compose.yaml"
    file.write_text(broken or FILE.read_text(encoding="utf-8"), encoding="utf-8")
    words = ("-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file))
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout


def test_every_image_has_a_version(services):
    """And Prefect's is the one that everything here was tested with."""
    tested = importlib.metadata.version("prefect")
    for service in services.values():
        name, _, version = service["image"].partition(":")
        assert re.match(r"\d+\.\d+", version), name
        if name == "prefecthq/prefect":
            assert version.startswith(f"{tested}-python3.")


def test_every_setting_exists(services):
    """None of ours is misspelt, and none that Prefect knows."""
    ours = {f"COMETAPI_{name.upper()}" for name in CometAPISettings.model_fields}
    names = {name for service in services.values() for name in service.get("environment", {})}
    assert {name for name in names if name.startswith("COMETAPI_")} <= ours
    # Those of the Redis package are read by it alone.
    theirs = {name for name in names if name.startswith("PREFECT_")} - {"PREFECT_PASSWORD"}
    unknown = {name for name in theirs if not hasattr(prefect.settings, name)}
    assert unknown == {"PREFECT_REDIS_MESSAGING_HOST"}


def test_no_password_stands_in_it():
    """Whoever starts it must give them, and is told where."""
    text = FILE.read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{(\w+):\?put \1 into \.env\}", text)) == {
        "COMETAPI_KEY",
        "LEDGER_PASSWORD",
        "PREFECT_PASSWORD",
    }


def test_all_workers_share_ledger_storage_and_results(services):
    """What `doctor` asks for where there is more than one."""
    worker = services["worker"]
    assert worker["environment"]["COMETAPI_LEDGER_URL"].startswith("postgresql://")
    mounted = {volume.partition(":")[2] for volume in worker["volumes"]}
    assert {
        worker["environment"]["COMETAPI_STORAGE"],
        worker["environment"]["PREFECT_LOCAL_STORAGE_PATH"],
    } == mounted
