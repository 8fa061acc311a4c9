# SPDX-License-Identifier: Apache-2.0
"""A real PostgreSQL server that tests may stop, restart and crash."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Literal
from uuid import uuid4

import psutil

Mode = Literal["fast", "immediate"]


def binaries() -> Path | None:
    """Return the folder with initdb and pg_ctl of the newest installed version that can run."""
    if os.geteuid() == 0:
        try:
            pwd.getpwnam("postgres")  # Debian's package creates this user
        except KeyError:
            return None
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if asked := shutil.which("pg_config"):
        shown = subprocess.run(
            [asked, "--bindir"], capture_output=True, text=True, timeout=30, check=False
        )
        found += [path for path in [Path(shown.stdout.strip())] if (path / "initdb").is_file()]

    def version(folder: Path) -> float:
        with suppress(ValueError):
            return float(folder.parent.name)
        return 0.0

    return max(found, key=version, default=None)


class Postgres:
    """One server on a free port of this machine, in a temporary folder.

    PostgreSQL refuses to run as root, so there it runs as the user ``postgres``.

    Args:
        folder_of_binaries: Folder with the programs of PostgreSQL.
        primary: The server that this one follows, if it is a standby.
    """

    def __init__(self, folder_of_binaries: Path, primary: "Postgres | None" = None) -> None:
        self._binaries = folder_of_binaries
        self._user = "postgres" if os.geteuid() == 0 else None
        self._home = Path(tempfile.mkdtemp(prefix="cometapi-postgres-"))
        self._data = self._home / "data"
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port: int = listener.getsockname()[1]
        if self._user:
            shutil.chown(self._home, self._user)
        if primary:
            where = ["-h", "127.0.0.1", "-p", str(primary.port), "-U", "postgres"]
            self._run("pg_basebackup", *where, "--checkpoint=fast", "--write-recovery-conf")
        else:
            self._run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "-N")
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self._home),
            "max_connections": "200",
            "fsync": "off",  # the machine does not lose power, and a killed server loses nothing
        }
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in options.items())
        self.start()

    def url(self, database: str) -> str:
        """Return the URL of a database of this server."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def create_database(self) -> str:
        """Create a new database and return its URL."""
        name = f"d{uuid4().hex}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Delete a database, even while clients are connected to it."""
        self.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def execute(self, statement: str, database: str = "postgres") -> str:
        """Run a statement in psql and return its output."""
        connection = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-d", database]
        quiet = ["-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-c", statement]
        return self._start(self._binaries / "psql", *connection, *quiet)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._run("pg_ctl", "-w", "-t", "60", "-l", str(self._home / "log"), "start")

    def stop(self, mode: Mode = "fast") -> None:
        """Stop the server: ``fast`` ends all sessions, ``immediate`` is a crash."""
        self._run("pg_ctl", "-w", "-t", "60", "-m", mode, "stop")

    def restart(self, mode: Mode = "fast") -> None:
        """Stop the server and start it again."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """Send SIGKILL to the main process, as the kernel does when memory runs out."""
        number = int((self._data / "postmaster.pid").read_text().split()[0])
        first = psutil.Process(number)
        others = first.children(recursive=True)
        first.kill()
        psutil.wait_procs([first, *others], timeout=60)

    def standby(self) -> "Postgres":
        """Start a standby, which follows this server and is read-only."""
        return Postgres(self._binaries, self)

    def promote(self) -> None:
        """Promote a standby to a primary, because the server that it followed is gone."""
        self._run("pg_ctl", "-w", "-t", "60", "promote")

    def remove(self) -> None:
        """Stop the server and delete its files."""
        with suppress(AssertionError):
            self.stop("immediate")
        shutil.rmtree(self._home)

    def _run(self, program: str, *arguments: str) -> None:
        self._start(self._binaries / program, "-D", str(self._data), *arguments)

    def _start(self, *command: str | Path) -> str:
        with tempfile.TemporaryFile("w+") as output:  # a pipe would be kept open by the server
            done = subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._home,
                user=self._user,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(self._home)},
                check=False,
            )
            output.seek(0)
            shown = output.read()
        assert done.returncode == 0, shown
        return shown.strip()
