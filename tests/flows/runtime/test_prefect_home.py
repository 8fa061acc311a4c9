# SPDX-License-Identifier: Apache-2.0
"""The default ledger is in Prefect's home, which is found without Prefect where that is certain."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import get_current_settings

from prefect_cometapi.flows.runtime.prefect_home import home_without_prefect, prefect_home

SHOWN = """
import sys
from prefect_cometapi.flows.runtime.prefect_home import prefect_home
ours = prefect_home()
print("prefect" in sys.modules)
from prefect.settings import get_current_settings
print(ours == get_current_settings().home.expanduser().absolute())
"""


@pytest.fixture
def user(tmp_path, monkeypatch) -> Path:
    """Create a user with an empty home and working folder, whose Prefect has no settings."""
    for name in [name for name in os.environ if name.startswith("PREFECT")]:
        monkeypatch.delenv(name)
    home = tmp_path / "user"
    (home / ".prefect").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return home


def test_loaded_settings_of_prefect_count():
    """Settings of a Prefect that is loaded already name its home."""
    assert prefect_home() == get_current_settings().home.expanduser().absolute()


def test_the_usual_home_and_a_variable_need_no_prefect(user):
    """The default and PREFECT_HOME are certain."""
    assert home_without_prefect({}) == user / ".prefect"
    assert home_without_prefect({"PREFECT_HOME": "~/there"}) == Path("~/there")
    (Path(".env")).write_text("COMETAPI_KEY=k\n")
    (user / ".prefect" / "profiles.toml").write_text('[profiles.a]\nPREFECT_API_URL = "x"\n')
    assert home_without_prefect({}) == user / ".prefect"


@pytest.mark.parametrize(
    "variables",
    [
        {"PREFECT_HOME": ""},
        {"prefect_home": "/a"},
        {"PREFECT_HOME": "/a", "Prefect_Home": "/b"},
        {"PREFECT_PROFILES_PATH": "/a/profiles.toml"},
    ],
)
def test_doubtful_variables_are_left_to_prefect(user, variables):
    """Prefect decides about empty, repeated and oddly written variables."""
    assert home_without_prefect(variables) is None


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (".env", b"PREFECT_HOME=/a\n"),
        (".env", b"\xff\xfe"),
        ("prefect.toml", b'home = "/a"\n'),
        ("pyproject.toml", b'[tool.prefect]\n"home" = "/a"\n'),
        ("pyproject.toml", b'[tool.prefect]\nprofiles_path = "/a"\n'),
        ("~/.prefect/profiles.toml", b'[profiles.a]\nPREFECT_HOME = "/a"\n'),
    ],
)
def test_a_file_that_may_name_a_home_is_left_to_prefect(user, file, content):
    """Prefect decides if a file that it reads may name another home."""
    Path(file).expanduser().write_bytes(content)
    assert home_without_prefect({}) is None


def test_a_user_without_a_home_is_left_to_prefect(user, monkeypatch):
    """Prefect decides if the user has no home folder."""

    def homeless(_path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    assert home_without_prefect({}) is None


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("files", "variables", "asks"),
    [
        ({}, {}, False),
        ({}, {"PREFECT_HOME": "relative/~x"}, False),
        ({"pyproject.toml": '[project.urls]\nHomepage = "https://x.test"\n'}, {}, False),
        ({".env": "PREFECT_HOME=/tmp/of-env\n"}, {}, True),
        ({"prefect.toml": 'home = "/tmp/of-toml"\n'}, {}, True),
        ({"pyproject.toml": '[tool.prefect]\nhome = "/tmp/of-project"\n'}, {}, True),
        ({"p.toml": 'active = "a"\n'}, {"PREFECT_PROFILES_PATH": "p.toml"}, True),
        ({"prefect.toml": 'home = "/tmp/of-toml"\n'}, {"PREFECT_HOME": "/tmp/given"}, False),
    ],
)
def test_the_home_is_that_of_prefect(user, files, variables, asks):
    """The folder is the one that Prefect uses, wherever it is set."""
    for name, content in files.items():
        Path(name).write_text(content)
    done = subprocess.run(
        [sys.executable, "-c", SHOWN],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(asks), "True"]
