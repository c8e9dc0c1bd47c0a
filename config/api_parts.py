"""What a table of `apis.toml` is made of: the address, the credential, the headers."""

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated, Any, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, StrictStr, model_validator

from config.providers import HEADER_NAME
from config.tables import Table, is_variable, kind_of

OURS = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "te",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers in lower case that the client writes itself."""

SECRETS = frozenset({"authorization", "proxy-authorization", "cookie"})
"""Headers in lower case that carry a secret: never written in the file."""


def check_base_url(url: str) -> str:
    """Accept an address to put paths after and cut its last slash; a ValueError never shows it."""
    if not (url.isascii() and url.isprintable()) or {" ", "\\"} & set(url):
        raise ValueError("it holds blanks, backslashes or other characters that an address cannot have")
    parts = _split(url)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ValueError("it must begin with https:// and a host, such as https://api.example.com/v1")
    if "@" in parts.netloc:
        raise ValueError("it holds a user or password before @; credentials belong into auth")
    if "?" in url or "#" in url:
        raise ValueError("it holds ? or #; paths are put after it, so it must end before them")
    if {"", ".", ".."} & set(parts.path.strip("/").split("/")) and parts.path.strip("/"):
        raise ValueError("its path holds an empty, . or .. segment")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise ValueError("it is plain http, which shows credentials to everyone on the way; use https")
    return url.rstrip("/")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("its host or port cannot be read") from None
    return parts


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _check_name(name: str) -> str:
    if not HEADER_NAME.fullmatch(name):
        raise ValueError("found a string that is not a header's name")
    if name.lower() in OURS:
        raise ValueError(f"{name} is the client's own to write")
    return name


def _check_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    seen: set[str] = set()
    for name, value in headers.items():
        if _check_name(name).lower() in SECRETS:
            raise ValueError(f"{name} carries a secret; auth reads it from a variable")
        if name.lower() in seen:
            raise ValueError(f"{name} is there twice")
        if not _fits_header(value):
            raise ValueError(f"{name} must have a value of printable ASCII characters")
        seen.add(name.lower())
    return headers


def _fits_header(value: str) -> bool:
    return value.isascii() and value.isprintable() and value == value.strip() != ""


def _check_variable(value: Any) -> Any:
    if not is_variable(value):
        raise ValueError(
            f"found {kind_of(value)} that is no variable's name;"
            " write capitals, digits and _, never the credential itself"
        )
    return value


HeaderName = Annotated[StrictStr, AfterValidator(_check_name)]
Headers = Annotated[Mapping[StrictStr, StrictStr], AfterValidator(_check_headers)]
BaseUrl = Annotated[StrictStr, AfterValidator(check_base_url)]


class AuthTable(Table):
    """How the credential travels, and the variable that holds it; `name` is for `type = "header"`."""

    type: Literal["bearer", "basic", "header"]
    value_env: Annotated[StrictStr, BeforeValidator(_check_variable)]
    name: HeaderName | None = None

    @model_validator(mode="after")
    def _names_its_header(self) -> Self:
        if (self.type == "header") != (self.name is not None):
            raise ValueError("name goes with type 'header', and only with it")
        return self


@dataclass(frozen=True)
class Auth:
    """How a credential travels; `header` is its header's name, `variable` the environment's."""

    type: Literal["bearer", "basic", "header"]
    variable: str
    header: str

    def problem_with(self, credential: str) -> str | None:
        """Say in a clause why this credential cannot be sent, or None; it is never shown."""
        if self.type == "basic":
            return None if ":" in credential else f"{self.variable} is not written as user:password"
        blank = self.type == "bearer" and " " in credential
        if blank or not _fits_header(credential):
            return f"{self.variable} holds characters that {self.header} cannot carry"
        return None

    def value(self, credential: str) -> str:
        """Return the header's value. `basic` sends UTF-8 (RFC 7617)."""
        match self.type:
            case "bearer":
                return f"Bearer {credential}"
            case "basic":
                # Whatever bytes the environment held are sent.
                return f"Basic {b64encode(credential.encode('utf-8', 'surrogateescape')).decode()}"
            case "header":
                return credential


def auth_of(table: AuthTable) -> Auth:
    """Read a checked table."""
    return Auth(table.type, table.value_env, table.name or "Authorization")
