"""Finding the signatures of a delivery: one value, a list, or pairs such as `t=...,v1=...`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from config.providers import SignatureTable
from receiver.signatures.decoding import DECODERS, encode
from receiver.signatures.errors import InvalidSignature
from receiver.signatures.reading import candidates
from receiver.signatures.request import Request

MAX_ENTRIES = 100  # Stripe and its kind send one per live secret; what stands behind a hundred is not read
SEPARATORS = (",", " ", ";", ".", "|", "&")


@dataclass(frozen=True)
class Found:
    """Decoded signatures to try, and the other fields that stood beside them."""

    signatures: tuple[bytes, ...]
    fields: Mapping[str, str]


class SignatureFinder:
    """Compiled from a `SignatureTable`."""

    def __init__(self, table: SignatureTable) -> None:
        self.where = table.places
        self._decode = DECODERS[table.encoding or "hex"]
        self._encoding = table.encoding or "hex"
        self._prefix = table.prefix
        self._separator = re.compile(table.list_sep) if table.list_sep else None
        self._pair_sep = table.pair_sep
        self._field = table.field

    def find(self, request: Request) -> Found:
        """Read all signatures that are written as they should be; InvalidSignature when there is none.

        Entries of unknown versions and malformed ones are skipped: providers add versions without notice.
        """
        entries = self._entries(request)
        fields: dict[str, str] = {}
        if self._pair_sep:
            pairs = [self._pair(entry) for entry in entries]
            fields = dict(reversed(pairs))  # the first of equal names counts
            entries = [value for name, value in pairs if name == self._field]
        prefix = self._prefix
        decoded = (self._decode(entry[len(prefix) :]) for entry in entries if entry.startswith(prefix))
        signatures = tuple(raw for raw in decoded if raw)
        if not signatures:
            raise InvalidSignature("malformed_signature", str(self.where))
        return Found(signatures, fields)

    def _entries(self, request: Request) -> list[str]:
        groups = candidates(self.where, request)
        if not groups:
            raise InvalidSignature("missing_signature", str(self.where))
        if any(len(values) > 1 for values in groups):
            raise InvalidSignature("repeated_value", str(self.where))
        if self._separator is None:
            return [values[0] for values in groups]
        split = (self._separator.split(values[0], maxsplit=MAX_ENTRIES)[:MAX_ENTRIES] for values in groups)
        return [entry.strip(" \t") for entries in split for entry in entries]

    def _pair(self, entry: str) -> tuple[str, str]:
        name, _, value = entry.partition(self._pair_sep or "=")
        return name.strip(" \t"), value.strip(" \t")

    def write(self, signature: bytes, fields: Mapping[str, str]) -> str:
        """Write the text that `find` reads back: for signing."""
        text = self._prefix + encode(signature, self._encoding)
        if not self._pair_sep:
            return text
        pairs = [*fields.items(), (self._field or "", text)]
        return self._joiner().join(f"{name}{self._pair_sep}{value}" for name, value in pairs)

    def _joiner(self) -> str:
        if self._separator is None:
            return ","
        fitting = (text for text in SEPARATORS if self._separator.fullmatch(text))
        return next(fitting, ",")
