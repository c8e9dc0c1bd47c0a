"""Handshakes: requests that are no events, recognised and answered, and never recorded."""

import hmac
import json
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field

from config.providers import (
    ABSENT,
    ANY,
    VALUE_KINDS,
    VERIFY_TOKEN,
    HandshakeTable,
    KeyTable,
    ProofTable,
    key_bytes,
    parse_locators,
)
from config.sources import Source
from receiver.signatures.request import Request, single_text, wire

LONGEST_CHALLENGE = 1_024  # far above any provider's; an answer never repeats more of a request
_WORD = re.compile(r"[A-Za-z0-9+/=_.~-]{1,256}")  # what a challenge may be whose HMAC we give to anybody
_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class HandshakeAnswer:
    """The answer to a handshake."""

    status: int
    body: bytes = field(repr=False)
    content_type: str
    headers: Mapping[str, str] = field(repr=False)


class Handshakes:
    """Compiled from a source; never raises, for any bytes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._signed = tuple(table for table in source.provider.handshake if table.signed)
        opted_in = source.provider.handshake if source.handshake else ()
        self._unsigned = tuple(table for table in opted_in if not table.signed)
        self.methods = frozenset(table.method for table in self._unsigned)
        self._proves_to_anybody = any(table.proof for table in self._unsigned)

    def before_verifying(self, request: Request) -> HandshakeAnswer | None:
        """Answer an unsigned handshake, in a source that opted in."""
        return self._first(self._unsigned, request)

    def after_verifying(self, request: Request) -> HandshakeAnswer | None:
        """Answer a handshake whose signature was verified."""
        return self._first(self._signed, request)

    def could_be_proof(self, body: bytes) -> bool:
        """Whether a body's signature may be an answer of ours to somebody's challenge.

        Where challenges and bodies are signed with one key, anybody can have a bare word signed by us, and
        nothing at all where a constant stands before the body. No event of such a provider is either.
        """
        return self._proves_to_anybody and (not body or _WORD.fullmatch(body.decode("latin-1")) is not None)

    def _first(self, tables: tuple[HandshakeTable, ...], request: Request) -> HandshakeAnswer | None:
        answers = (self._answer(table, request) for table in tables if self._meets(table, request))
        return next((answer for answer in answers if answer), None)

    def _meets(self, table: HandshakeTable, request: Request) -> bool:
        return request.method == table.method and all(
            self._is(single_text(parse_locators(place, VALUE_KINDS), request), value)
            for place, value in table.when.items()
        )

    def _is(self, found: str | None, wanted: str) -> bool:
        if wanted in (ANY, ABSENT):
            return (found is not None) == (wanted == ANY)
        if found is None:
            return False
        tokens = self._source.verify_tokens if wanted == VERIFY_TOKEN else (wanted,)
        return any(hmac.compare_digest(wire(found), wire(token)) for token in tokens)

    def _answer(self, table: HandshakeTable, request: Request) -> HandshakeAnswer | None:
        values = self._values(table, request)
        if values is None:
            return None
        headers = {name: _filled(text, values) for name, text in table.headers.items()}
        if not all(_HEADER_VALUE.fullmatch(text) for text in headers.values()):
            return None
        if isinstance(table.answer, str):
            body = _filled(table.answer, values).encode("utf-8", "replace")
            return HandshakeAnswer(table.status, body, "text/plain; charset=utf-8", headers)
        told = {k: _filled(v, values) if isinstance(v, str) else v for k, v in table.answer.items()}
        return HandshakeAnswer(table.status, json.dumps(told).encode(), "application/json", headers)

    def _values(self, table: HandshakeTable, request: Request) -> dict[str, str] | None:
        values = {"verify_token": next(iter(self._source.verify_tokens), "")}
        if table.challenge is None:
            return values
        challenge = single_text(parse_locators(table.challenge, VALUE_KINDS), request)
        if challenge is None or len(challenge) > LONGEST_CHALLENGE:
            return None
        values["challenge"] = challenge
        if table.proof is not None:
            if not table.signed and not _WORD.fullmatch(challenge):
                return None
            proof = self._proof(table.proof, challenge)
            return None if proof is None else {**values, "proof": proof}
        return values

    def _proof(self, table: ProofTable, challenge: str) -> str | None:
        scheme = self._source.provider.scheme
        how = (scheme.key if scheme else None) or KeyTable()
        keys = (key_bytes(secret, how.encoding, how.strip_prefix) for secret in self._source.secrets)
        key = next(filter(None, keys), None)
        if key is None:
            return None
        digest = hmac.digest(key, challenge.encode("utf-8", "surrogatepass"), table.hash)
        return table.prefix + (digest.hex() if table.encoding == "hex" else b64encode(digest).decode())


def _filled(template: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], template)
