"""The environment, read once into one frozen object.

Nothing else reads `os.environ` or `.env`. `load_settings` refuses what would lose events, in one sentence;
`environment` is where secrets are looked up by the names that TOML files have for them.
"""

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import quote

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from config.apis import APIS
from config.credentials import ApiKey, User, parse_api_keys, parse_users
from config.logs import Form
from config.sources import SOURCES
from config.toml import ConfigError, Duration, split_list

DEV_DATABASE = "sqlite:///var/firstseen.db"
DEV_SOCKET = Path("var/valkey.sock")

# Variables by which Heroku, Render and Fly are known: files there are gone after a restart.
THROWAWAY_DISKS = ("DYNO", "RENDER", "FLY_APP_NAME")

SQLITE = "sqlite"
IN_MEMORY = (":memory:", "mode=memory")
ALERT_URL = re.compile(r"https?://[^\s/?#@]+([/?][^\s#]*)?")
SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]{0,30}")
PUBLIC_URL = re.compile(r"https?://[A-Za-z0-9._-]+(:\d{1,5})?(/[A-Za-z0-9._~-]+)*/?", re.ASCII)
DATABASE_SCHEMES = (SQLITE, "postgres", "postgresql", "postgresql+psycopg")
BROKER_SCHEMES = ("redis", "rediss", "redis+socket", "valkey", "valkeys", "amqp", "amqps")

# Characters; shorter keys could be guessed, and every outbound idempotency key hangs on this one.
SECRET_KEY_MIN = 32

# Characters; a shorter token could be guessed by asking often.
METRICS_TOKEN_MIN = 16

# Variables whose value never stands in an error; people write passwords into URLs.
SECRET_NAMES = frozenset(
    {
        "DATABASE_URL",
        "BROKER_URL",
        "REDIS_URL",
        "FIRSTSEEN_SECRET_KEY",
        "FIRSTSEEN_API_KEYS",
        "FIRSTSEEN_USERS",
        "FIRSTSEEN_METRICS_TOKEN",
        "FIRSTSEEN_ALERT_URL",
        "FIRSTSEEN_PUBLIC_URL",
    }
)

Count = Annotated[int, Field(ge=1, le=10_000)]


class Settings(BaseSettings):
    """The configuration of this process; docs/configuration.md explains each variable."""

    # A variable that is set to nothing counts as absent: that is how people switch one off in a panel.
    model_config = SettingsConfigDict(frozen=True, env_file=".env", extra="ignore", env_ignore_empty=True)

    dev: bool = Field(default=False, validation_alias="FIRSTSEEN_DEV")
    database_url: str = Field(default="", validation_alias="DATABASE_URL", repr=False)
    broker_url: str = Field(default="", validation_alias="BROKER_URL", repr=False)
    redis_url: str = Field(default="", validation_alias="REDIS_URL", repr=False)
    # NoDecode, here and below: pydantic would want tuples as JSON.
    secret_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        default=(), validation_alias="FIRSTSEEN_SECRET_KEY", repr=False
    )
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode] = Field(
        default=(), validation_alias="FIRSTSEEN_API_KEYS", repr=False
    )
    users: Annotated[tuple[User, ...], NoDecode] = Field(
        default=(), validation_alias="FIRSTSEEN_USERS", repr=False
    )
    sources_path: Path = Field(default=SOURCES, validation_alias="FIRSTSEEN_SOURCES")
    apis_path: Path = Field(default=APIS, validation_alias="FIRSTSEEN_APIS")
    handlers: Annotated[tuple[str, ...], NoDecode] = Field(default=(), validation_alias="FIRSTSEEN_HANDLERS")
    lease: Duration = Field(default=timedelta(seconds=60), validation_alias="FIRSTSEEN_LEASE")
    sweep: Duration = Field(default=timedelta(seconds=5), validation_alias="FIRSTSEEN_SWEEP")
    attempts: Count = Field(default=15, validation_alias="FIRSTSEEN_ATTEMPTS")
    backoff_max: Duration = Field(default=timedelta(hours=1), validation_alias="FIRSTSEEN_BACKOFF_MAX")
    max_runtime: Duration = Field(default=timedelta(minutes=10), validation_alias="FIRSTSEEN_MAX_RUNTIME")
    give_up_after: Duration = Field(default=timedelta(days=3), validation_alias="FIRSTSEEN_GIVE_UP_AFTER")
    db_pool: Annotated[int, Field(ge=2, le=100)] = Field(default=4, validation_alias="FIRSTSEEN_DB_POOL")
    host: str = Field(default="", validation_alias="FIRSTSEEN_HOST")
    port: Annotated[int, Field(ge=1, le=65_535)] = Field(default=8000, validation_alias="PORT")
    public_url: str = Field(default="", validation_alias="FIRSTSEEN_PUBLIC_URL")
    proxy_hops: Annotated[int, Field(ge=0, le=10)] = Field(default=0, validation_alias="FIRSTSEEN_PROXY_HOPS")
    web_concurrency: Count = Field(default=1, validation_alias="WEB_CONCURRENCY")
    web_threads: Count = Field(default=4, validation_alias="FIRSTSEEN_WEB_THREADS")
    # Ten seconds: a megabyte at the pace of a slow phone.
    upload_timeout: Duration = Field(
        default=timedelta(seconds=10), validation_alias="FIRSTSEEN_UPLOAD_TIMEOUT"
    )
    worker_concurrency: Count = Field(default=16, validation_alias="WORKER_CONCURRENCY")
    logs: Form = Field(default="auto", validation_alias="FIRSTSEEN_LOGS")
    metrics_token: SecretStr = Field(
        default=SecretStr(""), validation_alias="FIRSTSEEN_METRICS_TOKEN", repr=False
    )
    alert_url: SecretStr = Field(default=SecretStr(""), validation_alias="FIRSTSEEN_ALERT_URL", repr=False)
    alert_backlog: Duration = Field(default=timedelta(minutes=10), validation_alias="FIRSTSEEN_ALERT_BACKLOG")

    @field_validator("secret_keys", "handlers", "api_keys", "users", mode="before")
    @classmethod
    def _read_list(cls, value: object, field: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        parsers = {"api_keys": parse_api_keys, "users": parse_users}
        return parsers.get(field.field_name or "", split_list)(value)

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, value: str) -> str:
        if value and not PUBLIC_URL.fullmatch(value):
            raise ValueError(
                "write scheme and host, and a path only if a proxy cuts it off, such as https://hooks.example.com"
            )
        return value.rstrip("/")

    @field_validator("metrics_token")
    @classmethod
    def _check_metrics_token(cls, token: SecretStr) -> SecretStr:
        if 0 < len(token.get_secret_value()) < METRICS_TOKEN_MIN:
            raise ValueError(
                f"it must have {METRICS_TOKEN_MIN} characters or more, as a shorter one can be guessed"
            )
        return token

    @field_validator("alert_url")
    @classmethod
    def _check_alert_url(cls, url: SecretStr) -> SecretStr:
        if url.get_secret_value() and not ALERT_URL.fullmatch(url.get_secret_value()):
            raise ValueError("it must be an address that begins with https:// or http:// and a host")
        return url

    @model_validator(mode="after")
    def _rules(self) -> Self:
        self._check_database()
        self._check_broker()
        if not self.dev and not self.secret_keys:
            raise ValueError("FIRSTSEEN_SECRET_KEY is not set: give it 32 or more random characters")
        if any(len(key.get_secret_value()) < SECRET_KEY_MIN for key in self.secret_keys):
            raise ValueError(f"FIRSTSEEN_SECRET_KEY holds a key shorter than {SECRET_KEY_MIN} characters")
        return self

    def _check_database(self) -> None:
        url = self.database_url or (DEV_DATABASE if self.dev else "")
        if not url:
            raise ValueError(
                "DATABASE_URL is not set: name a PostgreSQL or SQLite database,"
                " or acknowledged events would have no home"
            )
        _check_scheme("DATABASE_URL", url, DATABASE_SCHEMES)
        # sqlite:// and sqlite:/// name no file either.
        nameless = not url.partition("?")[0].removeprefix("sqlite://").strip("/")
        if url.startswith(SQLITE) and (nameless or any(word in url for word in IN_MEMORY)):
            raise ValueError(
                "DATABASE_URL names no file, and a database in memory forgets every event:"
                " write sqlite:///path/to/file.db"
            )
        # Only the process's own variables: a `.env` copied from a platform is not the platform.
        platform = next((name for name in THROWAWAY_DISKS if os.environ.get(name)), None)
        if url.startswith(SQLITE) and platform:
            raise ValueError(
                f"DATABASE_URL is SQLite, but {platform} says that this platform throws its disk away"
                " at each restart, and acknowledged events with it: use PostgreSQL"
            )

    def _check_broker(self) -> None:
        url = self.broker_url or self.redis_url or (dev_broker() if self.dev else "")
        if not url:
            raise ValueError(
                "BROKER_URL is not set, nor REDIS_URL: name the Redis, Valkey or RabbitMQ"
                " that wakes the workers"
            )
        _check_scheme("BROKER_URL" if self.broker_url else "REDIS_URL", url, BROKER_SCHEMES)

    @property
    def database(self) -> str:
        """The database's URL as SQLAlchemy takes it, with the psycopg driver."""
        # SQLAlchemy knows no postgres://, which platforms write, and takes postgresql:// for psycopg2.
        scheme, _, rest = (self.database_url or DEV_DATABASE).partition("://")
        return f"{scheme}://{rest}" if scheme == SQLITE else f"postgresql+psycopg://{rest}"

    @property
    def local_address(self) -> str:
        """Web's `host:port` as this machine reaches it: a server that listens everywhere is reached here."""
        host = "127.0.0.1" if self.host in {"", "0.0.0.0", "::"} else self.host  # noqa: S104 - compared
        return f"{host}:{self.port}"

    @property
    def broker(self) -> str:
        """The broker's URL as kombu takes it; Valkey speaks Redis."""
        url = self.broker_url or self.redis_url or dev_broker()
        return url.replace("valkeys://", "rediss://", 1).replace("valkey://", "redis://", 1)


def dev_broker() -> str:
    """Return where `make run` puts its broker: an absolute path, since kombu takes no other."""
    return f"redis+socket://{quote(str(DEV_SOCKET.absolute()))}"


def _check_scheme(name: str, url: str, allowed: tuple[str, ...]) -> None:
    scheme = url.partition("://")[0]
    if "://" not in url or scheme not in allowed:
        # What does not look like a scheme may be a password.
        found = scheme if "://" in url and SCHEME.fullmatch(scheme) else "no scheme"
        raise ValueError(f"{name} has {found!r} before ://, and only {', '.join(allowed)} are known")


def environment() -> Mapping[str, str]:
    """Every variable of the process and of `.env`, the process first: where secrets are looked up by name."""
    written = {name: value for name, value in dotenv_values(".env").items() if value is not None}
    return {**written, **os.environ}


def load_settings() -> Settings:
    """Read the environment; raise ConfigError with one sentence for the first thing that is wrong."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        raise ConfigError(f"Environment: {message}.")
    name = str(first["loc"][0])
    found = "" if name in SECRET_NAMES else f" (found {first['input']!r})"
    raise ConfigError(f"Environment: {name} is wrong: {message}{found}.")
