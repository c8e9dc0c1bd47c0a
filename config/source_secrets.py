"""The secrets of sources, read from the environment, and what is wrong with them without showing any."""

from collections.abc import Mapping

from config.providers import Provider
from config.secrets import is_usable

Found = tuple[tuple[str, ...], tuple[str, ...]]


def read_secrets(variables: str | tuple[str, ...], provider: Provider, environ: Mapping[str, str]) -> Found:
    """Return the usable secrets, in order, and a sentence for each that is not.

    One variable holds a list; of several, each holds one secret, commas and all.
    """
    found: dict[str, None] = {}
    warnings = []
    for variable in (variables,) if isinstance(variables, str) else variables:
        whole = environ.get(variable, "").strip()
        secrets = read_list(variable, environ) if isinstance(variables, str) else (whole,) if whole else ()
        if not secrets:
            state = "empty" if variable in environ else "not set"
            warnings.append(f"the environment variable {variable} is {state}")
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
