# SPDX-License-Identifier: Apache-2.0
"""The wheel, and an environment in which it is installed as by a user."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the sources, so that the working folder stays unchanged."""
    copy, target = copied_sources(folder), folder / "wheel"
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target)]
    _run(*build, str(copy))
    (built,) = target.glob("*.whl")
    return built


def copied_sources(folder: Path) -> Path:
    """Copy the project without its generated files."""
    generated = shutil.ignore_patterns(
        "__pycache__", "build", "dist", "*.egg-info", ".*", "videos", "tmp*"
    )
    copy = shutil.copytree(ROOT, folder / "project", ignore=generated)
    shutil.copy(ROOT / ".dockerignore", copy)
    return copy


def install(wheel: Path, home: Path) -> Path:
    """Install the wheel with our dependencies, without our sources; return the script folder."""
    scripts = empty_environment(home)
    pip = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "install"]
    _run(*pip, "--no-deps", "--no-index", "--quiet", str(wheel))
    return scripts


def empty_environment(home: Path) -> Path:
    """Make an environment with our dependencies but without us; return its folder of scripts."""
    _run(sys.executable, "-m", "venv", "--without-pip", str(home))
    place = Path(sysconfig.get_path("purelib", "venv", {"base": home, "platbase": home}))
    # Python ignores .pth files in a folder that a .pth file names. So the project, which is
    # installed here in editable mode, is not visible from the new environment.
    (place / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return home / "bin"


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
