"""A private RabbitMQ node, if `rabbitmq-server` is installed; it runs beside other nodes and as any user."""

import hashlib
import json
import os
import secrets
import shutil
from base64 import b64encode
from contextlib import suppress
from pathlib import Path
from typing import Any

import amqp

from tests.services.private_server import QUEUE, Server
from tests.services.processes import Process
from tests.services.waiting import answers, free_port, wait_until

PLACES = ("/usr/lib/rabbitmq/bin", "/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/sbin")
"""Folders of packages. Debian's wrapper in /usr/sbin needs root and changes its user, so it is not first."""
LOOPBACK = "-kernel inet_dist_use_interface {127,0,0,1}"
FRUGAL = "+S 1:1 +sbwt none"
"""One scheduler that does not busy-wait, because tests share the cores."""
VHOSTS = 16
"""Virtual hosts of a node: more than the tests of one run need."""
MISSING = "rabbitmq-server is not installed here (on Debian and Ubuntu: apt-get install rabbitmq-server)"


def programs() -> Path | None:
    """Return the folder of RabbitMQ's own scripts, or None where it is not installed."""
    path = os.pathsep.join([*PLACES, os.environ.get("PATH", "")])
    found = shutil.which("rabbitmq-server", path=path)
    return Path(found).parent if found and shutil.which("erl") else None


class RabbitMQ(Server):
    """A node with its own port mapper, files and cookie, on loopback alone."""

    name = "rabbitmq"

    def __init__(self) -> None:
        super().__init__()
        self.programs = programs()
        self._numbers = iter(range(VHOSTS))
        self._epmd: Process | None = None
        self._epmd_port = self._dist_port = 0
        (self.folder / "env.conf").touch()
        (self.folder / "rabbitmq.conf").write_text(f"load_definitions = {self.folder}/definitions.json\n")
        (self.folder / "definitions.json").write_text(json.dumps(_definitions()))
        (self.folder / "advanced.config").write_text("[].\n")
        (self.folder / "enabled_plugins").write_text("[].\n")

    def start(self) -> "RabbitMQ":
        """Start the port mapper, then the node."""
        if self._epmd is None:
            self._epmd_port, self._dist_port = free_port(), free_port()
            argv = [str(_epmd()), "-port", str(self._epmd_port), "-address", "127.0.0.1"]
            self._epmd = Process("epmd", argv, log=self.folder / "epmd.log", env=self.env())
            wait_until(lambda: answers(self._epmd_port), "the Erlang port mapper to listen")
        return super().start()

    def argv(self) -> list[str]:
        """Return the command that runs the node in the foreground."""
        assert self.programs, MISSING
        return [str(self.programs / "rabbitmq-server")]

    def env(self) -> dict[str, str]:
        """Return an environment that keeps it from the files of the system's own node."""
        at = {
            name: str(self.folder / name)
            for name in ("mnesia", "rabbitmq.conf", "advanced.config", "env.conf")
        }
        return super().env() | {
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": f"{self.folder.name}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_CONF_ENV_FILE": at["env.conf"],
            "RABBITMQ_CONFIG_FILE": at["rabbitmq.conf"],
            "RABBITMQ_ADVANCED_CONFIG_FILE": at["advanced.config"],
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": at["mnesia"],
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{LOOPBACK} {FRUGAL}",
        }

    def url(self, vhost: str = "%2F") -> str:
        """Return the address of one of its virtual hosts."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{vhost}"

    def answers(self) -> bool:
        """Return whether it accepts a client."""
        try:
            with self.connection():
                return True
        except (OSError, amqp.AMQPError):
            return False

    def connection(self, vhost: str = "/") -> amqp.Connection:
        """Return a connection for `with`."""
        return amqp.Connection(f"127.0.0.1:{self.port}", virtual_host=vhost, connect_timeout=5)

    def take_vhost(self) -> str:
        """Return the URL of an empty virtual host that no other test gets."""
        return self.url(f"test_{next(self._numbers)}")

    def queue_length(self, url: str, queue: str = QUEUE) -> int:
        """Return the number of waiting messages in this queue; 0 if it does not exist."""
        try:
            with self.connection(url.rpartition("/")[2]) as connection:
                return int(connection.channel().queue_declare(queue, passive=True).message_count)
        except amqp.NotFound:
            return 0

    def wipe(self, url: str, queue: str = QUEUE) -> None:
        """Drop every waiting message of this queue, if it exists."""
        with suppress(amqp.NotFound), self.connection(url.rpartition("/")[2]) as connection:
            connection.channel().queue_purge(queue)

    def stop(self) -> None:
        """End the node and its port mapper, and remove their folder."""
        if self._epmd:
            self._epmd.kill()
        super().stop()


def _definitions() -> dict[str, Any]:
    """Return the user and the virtual hosts that the node starts with: adding one later takes seconds."""
    hosts = ["/", *(f"test_{number}" for number in range(VHOSTS))]
    salt = secrets.token_bytes(4)
    password = b64encode(salt + hashlib.sha256(salt + b"guest").digest()).decode()
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    return {
        "users": [{"name": "guest", "password_hash": password, "tags": "administrator"}],
        "vhosts": [{"name": name} for name in hosts],
        "permissions": [{"user": "guest", "vhost": name, **everything} for name in hosts],
    }


def _epmd() -> Path:
    """Find the port mapper: on the PATH, or inside Erlang's own folder."""
    found = shutil.which("epmd")
    if found:
        return Path(found)
    erl = Path(shutil.which("erl") or "").resolve()
    return next(erl.parent.parent.glob("**/epmd"))
