"""What proves the sender of a source: variables with its secrets, or the user's word that nothing does."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator

from config.providers import Provider, is_usable
from config.tables import is_variable, kind_of


def _check_variables(value: Any) -> str | tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if isinstance(names, list) and names and all(map(is_variable, names)):
        return value if isinstance(value, str) else tuple(names)
    raise ValueError(
        f"found {kind_of(value)} that is no variable's name, nor a list of such names;"
        " write capitals, digits and _, never the secret itself"
    )


def _check_variable(value: Any) -> str:
    if is_variable(value):
        return str(value)
    raise ValueError(
        f"found {kind_of(value)} that is no variable's name; write capitals, digits and _, never the token"
    )


Variables = Annotated[str | tuple[str, ...], BeforeValidator(_check_variables)]
"""One variable with secrets separated by commas, or several with one secret each."""


Variable = Annotated[str, BeforeValidator(_check_variable)]
"""One variable."""


def check_proof(provider: Provider, names: str | tuple[str, ...] | None, *, unverified: bool) -> None:
    """Refuse a source without the secret that it needs, or with one that nobody uses; ValueError says why."""
    if unverified and provider.verification is None:
        raise ValueError(f"unverified is true, but {provider.name} can be verified; leave it out")
    if provider.verification is not None and not unverified:
        raise ValueError(
            f"unverified is missing: {provider.name} signs nothing, so whoever knows the address can post"
            " events; write unverified = true if your handler asks the provider before it believes one"
        )
    if provider.needs_secret and names is None:
        raise ValueError("secrets_env is missing; name the variable that holds the secret")
    if not provider.needs_secret and names is not None:
        raise ValueError(f"secrets_env is set, but {provider.name} shares no secret; leave it out")


def variables(names: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the variables' names as they are listed."""
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else names


def read_secrets(
    provider: Provider, names: str | tuple[str, ...] | None, environ: Mapping[str, str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the usable secrets, each once, and a sentence for each that is missing or cannot be used."""
    found: dict[str, None] = {}
    warnings = []
    for variable in variables(names):
        whole = environ.get(variable, "").strip()
        secrets = read_list(variable, environ) if isinstance(names, str) else (whole,) if whole else ()
        if not secrets:
            warnings.append(
                f"the environment variable {variable} is {'empty' if variable in environ else 'not set'}"
            )
        for number, secret in enumerate(secrets, 1):
            if is_usable(secret, provider.scheme):
                found[secret] = None
            else:
                warnings.append(
                    f"secret {number} in {variable} is not written as {provider.name}'s secrets are"
                )
    return tuple(found), tuple(warnings)


def read_list(variable: str | None, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Split a variable's value at its commas; empty parts are none."""
    values = environ.get(variable, "").split(",") if variable else []
    return tuple(value.strip() for value in values if value.strip())


def missing_token(variable: str | None, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Say that a handshake lacks its verify token, if it does."""
    if variable is None or read_list(variable, environ):
        return ()
    return (f"the environment variable {variable} holds no verify token, so the handshake gets no answer",)
