"""Operations of an API as a dialect writes them: `POST *`, `POST /v1/candidates/{id}/invite`."""

import re
from collections.abc import Iterable

METHODS = ("POST", "PUT", "PATCH", "DELETE")
OPERATION = re.compile(rf"({'|'.join(METHODS)}) (\*|(?:/[^/\s?#]+)+)")


def names(entries: Iterable[str], method: str, path: str) -> bool:
    """Say whether one of the entries is this method with the end of this path, in whole segments.

    The end, because APIs live below a version, a gateway or a proxy: the base URL is nobody's to know here.
    """
    split = [entry.partition(" ") for entry in entries]
    return any(method == verb and ends_with(path, pattern) for verb, _, pattern in split)


def ends_with(path: str, pattern: str) -> bool:
    """Say whether a path ends with a pattern: `{id}` is one segment that is not empty, `*` all of it."""
    if pattern == "*":
        return True
    wanted = pattern.split("/")[1:]
    found = path.split("/")[1:][-len(wanted) :]
    return len(wanted) == len(found) and all(
        part and want in (part, "{id}") for want, part in zip(wanted, found, strict=True)
    )
