"""Why is my signature wrong? The usual causes, each tried: what would have been verified is the hint."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from config.providers import KeyTable, Locator, SchemeTable
from config.sources import Source
from firstseen.variants import bodies, secret_texts, urls
from receiver.signatures import CannotVerify, InvalidSignature, Request, Scheme, compile_scheme
from receiver.signatures.editing import put

KEYED = frozenset({"hmac"})
ENCODINGS: tuple[Literal["utf8", "base64", "hex"], ...] = ("utf8", "base64", "hex")
PREFIX = "whsec_"
"""What many write before a secret: part of the key for some, and not for others."""

TIME = frozenset({"stale_timestamp", "future_timestamp"})


@dataclass(frozen=True)
class Case:
    """A rejected delivery and what rejected it."""

    source: Source
    scheme: Scheme
    request: Request
    now: float
    error: InvalidSignature

    def fits(
        self,
        *,
        request: Request | None = None,
        scheme: Scheme | None = None,
        secrets: Sequence[str] | None = None,
    ) -> bool:
        """Whether the signature would be good with these instead, whatever the time."""
        asked = secrets if secrets is not None else self.source.secrets
        try:
            (scheme or self.scheme).verify(asked, request or self.request, self.now, self.source.tolerance)
        except InvalidSignature as error:
            return error.reason in TIME
        except CannotVerify:
            return False
        return True


def hints(case: Case) -> list[str]:
    """Return a sentence for each cause that would explain the rejection; none of them holds a secret."""
    if case.error.reason in TIME:
        return [] if case.error.age is None else [_clock(case, case.error.age)]
    if ":" in (case.source.provider.code or ""):
        return []  # a user's own function, which is not ours to try things on
    causes: tuple[Callable[[Case], Iterator[str]], ...] = (_body, _secret, _url, _header)
    return [hint for cause in causes for hint in cause(case)]


def _clock(case: Case, age: float) -> str:
    when = "old" if age > 0 else "in the future"
    return (
        f"The signature itself is good, and only {when}: this clock and the signed time are {abs(age):.0f} s"
        f" apart. For a delivery of the past say when it came: --at {case.now - age:.0f} verifies it."
    )


def _body(case: Case) -> Iterator[str]:
    for what, body in bodies(case.request):
        if case.fits(request=replace(case.request, body=body)):
            yield (
                f"The signature fits the body {what}: something changed it on the way here or when it was"
                " saved. The raw bytes are signed, so keep and pass on those."
            )
            return


def _secret(case: Case) -> Iterator[str]:
    for what, secret in secret_texts(case.source.secrets):
        if case.fits(secrets=[secret]):
            yield f"The signature fits the secret {what}: mend the variable that holds it."
            return
    table = case.source.provider.scheme
    for found in (table, *table.schemes) if table else ():
        if found.type in KEYED:
            yield from _encodings(case, found)


def _encodings(case: Case, table: SchemeTable) -> Iterator[str]:
    used = table.key or KeyTable()
    for prefix, encoding in itertools.product(("", PREFIX), ENCODINGS):
        key = KeyTable(encoding=encoding, strip_prefix=prefix)
        other = compile_scheme(table.model_copy(update={"key": key}), case.source.options)
        if key != used and case.fits(scheme=other):
            told = f"The signature fits the secret read as {_in_words(key)}, not as {_in_words(used)}"
            yield f"{told}: another provider's scheme signs it, or the secret is written otherwise here."
            return


def _in_words(key: KeyTable) -> str:
    return f"{key.encoding} after {key.strip_prefix!r}" if key.strip_prefix else key.encoding


def _url(case: Case) -> Iterator[str]:
    if not case.source.provider.signs_url:
        return
    for url in urls(case.request):
        if case.fits(request=replace(case.request, url=url)):
            yield (
                f"The signature fits the URL {url}: a proxy changed it on the way to {case.request.url}. Set"
                " FIRSTSEEN_PUBLIC_URL to what the provider calls, or FIRSTSEEN_PROXY_HOPS."
            )
            return


def _header(case: Case) -> Iterator[str]:
    for place, prefix in _signature_places(case.source):
        for name, value in case.request.headers:
            if name.lower() != place.name.lower() and case.fits(request=put(place, value, case.request)):
                yield f"The signature stands in {name}, not in {place.name}: something renamed the header."
                return
            if prefix and case.fits(request=put(place, prefix + value, case.request)):
                yield f"The signature in {name} fits with {prefix!r} before it: something cut that off."
                return


def _signature_places(source: Source) -> Iterator[tuple[Locator, str]]:
    table = source.provider.scheme
    for scheme in (table, *table.schemes) if table else ():
        for place in scheme.signature.places.places if scheme.signature else ():
            if place.kind == "header":
                yield place, scheme.signature.prefix if scheme.signature else ""
    for name in source.provider.proof:
        yield Locator("header", name), ""
