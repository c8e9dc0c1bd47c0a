"""Handshakes: requests that ask whether an endpoint is ours; recognised, answered, and never recorded.

A provider's entry describes each as data (`HandshakeTable`): how it is recognised, where its challenge
stands, and the answer that it wants.
"""

import hmac
import json
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field

from config import providers
from config.sources import Source
from receiver.signatures.request import Request, single_text, wire

# Characters, far above any provider's challenge; an answer never repeats more of a request.
LONGEST_CHALLENGE = 1_024

# A challenge that is signed for anybody: no provider's event is such a bare word.
_WORD = re.compile(r"[A-Za-z0-9+/=_.~-]{1,256}")

_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class HandshakeAnswer:
    """The answer to a handshake."""

    status: int
    body: bytes = field(repr=False)
    content_type: str
    headers: Mapping[str, str] = field(repr=False)


class Handshakes:
    """The handshakes of one source; never raises, for any bytes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._signed = tuple(table for table in source.provider.handshake if table.signed)
        # Anybody can send these, so a source answers them only where its own table says so.
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
        """Whether the signature of a body may be an answer of ours to somebody's challenge."""
        # Where challenges and bodies are signed with one key, anybody can get a bare word signed or, where
        # a constant stands before the body, an empty body. No event of such a provider is either.
        return self._proves_to_anybody and (not body or _WORD.fullmatch(body.decode("latin-1")) is not None)

    def _first(
        self, tables: tuple[providers.HandshakeTable, ...], request: Request
    ) -> HandshakeAnswer | None:
        for table in tables:
            if table.method == request.method and self._fits(table, request):
                answer = self._answer(table, request)
                if answer is not None:
                    return answer
        return None

    def _fits(self, table: providers.HandshakeTable, request: Request) -> bool:
        """Whether every place in `when` holds the value that it must."""
        for place, wanted in table.when.items():
            found = single_text(providers.parse_locators(place, providers.VALUE_KINDS), request)
            if wanted in (providers.ANY, providers.ABSENT):
                if (found is not None) != (wanted == providers.ANY):
                    return False
                continue
            tokens = self._source.verify_tokens if wanted == providers.VERIFY_TOKEN else (wanted,)
            if found is None or not any(hmac.compare_digest(wire(found), wire(token)) for token in tokens):
                return False
        return True

    def _answer(self, table: providers.HandshakeTable, request: Request) -> HandshakeAnswer | None:
        """Return the answer that a table wants; None without a challenge that may be answered."""
        values = self._values(table, request)
        if values is None:
            return None
        headers = {name: _filled(text, values) for name, text in table.headers.items()}
        if not all(_HEADER_VALUE.fullmatch(text) for text in headers.values()):
            return None
        if isinstance(table.answer, str):
            body = _filled(table.answer, values).encode("utf-8", "replace")
            return HandshakeAnswer(table.status, body, "text/plain; charset=utf-8", headers)
        fields = {k: _filled(v, values) if isinstance(v, str) else v for k, v in table.answer.items()}
        return HandshakeAnswer(table.status, json.dumps(fields).encode(), "application/json", headers)

    def _values(self, table: providers.HandshakeTable, request: Request) -> dict[str, str] | None:
        """Return the values of the answer's placeholders; None for a challenge that may not be answered."""
        values = {"verify_token": next(iter(self._source.verify_tokens), "")}
        if table.challenge is None:
            return values
        challenge = single_text(providers.parse_locators(table.challenge, providers.VALUE_KINDS), request)
        if challenge is None or len(challenge) > LONGEST_CHALLENGE:
            return None
        values["challenge"] = challenge
        if table.proof is None:
            return values
        # Unsigned, anybody can ask for this HMAC: it is made only of text that is no event's body.
        if not table.signed and not _WORD.fullmatch(challenge):
            return None
        scheme = self._source.provider.scheme
        key_table = (scheme.key if scheme else None) or providers.KeyTable()
        keys = (
            providers.key_bytes(secret, key_table.encoding, key_table.strip_prefix)
            for secret in self._source.secrets
        )
        key = next(filter(None, keys), None)
        if key is None:
            return None
        digest = hmac.digest(key, challenge.encode("utf-8", "surrogatepass"), table.proof.hash)
        encoded = digest.hex() if table.proof.encoding == "hex" else b64encode(digest).decode()
        values["proof"] = table.proof.prefix + encoded
        return values


def _filled(template: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: values[match[1]], template)
