"""A source made ready at start-up: an `Endpoint` verifies its requests and extracts the events in them.

`build_endpoints` compiles every source: `build_scheme` chooses what verifies it, an `Extractor` finds ids,
types, times and bodies of its events. A body that cannot be read is kept whole, for a person.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from config.providers import Locator, Locators, parse_locator
from config.sources import Source
from config.toml import ConfigError, suggest
from config.tracing import current_traceparent
from receiver.handshakes import Handshakes
from receiver.ledger.intake import Delivery
from receiver.ledger.text import hashed, storable, uuid7
from receiver.payload import UnreadablePayloadError, parse_json
from receiver.signatures import InvalidSignature, Request, Scheme, compile_scheme
from receiver.signatures.request import compile_reader, dig
from receiver.signatures.timestamps import parse_time
from receiver.verifiers.adyen import Adyen
from receiver.verifiers.aws_sns import AwsSns
from receiver.verifiers.base import Unverified, Verifier, load_verifier
from receiver.verifiers.google_pubsub import GooglePubSub
from receiver.verifiers.mandrill import Mandrill
from receiver.verifiers.paypal import PayPal
from receiver.verifiers.plaid import Plaid
from receiver.verifiers.remote_keys import FetchedKeys, Keys
from receiver.verifiers.twilio import Twilio

UNKNOWN_TYPE = "unknown"

# Events in one batch; a larger one is kept whole, for a person.
MOST_ITEMS = 10_000

# Where in its batch an item stands, for items without ids.
POSITION = Locators((Locator("item", "#"),))

# A step of a batch's place that goes into each element of an array.
EVERY = "*"

# zlib's way to say: a gzip header, and no other.
GZIP = 16 + zlib.MAX_WBITS

Options = Mapping[str, str]

# The verifiers that are code, by the catalogue's `code`.
VERIFIERS: Mapping[str, Callable[[Options, Keys], Scheme]] = {
    "adyen": lambda _options, _keys: Adyen(),
    "aws-sns": AwsSns,
    "google-pubsub": GooglePubSub,
    "mandrill": lambda _options, _keys: Mandrill(),
    "paypal": PayPal,
    "plaid": Plaid,
    "twilio": lambda _options, _keys: Twilio(),
}


class Extractor:
    """Compiled from a source; never raises, for any bytes."""

    def __init__(self, source: Source) -> None:
        provider = source.provider
        self._source = source
        self._policy = provider.policy
        self._id_places = [
            (where, None if where == POSITION else compile_reader(where)) for where in provider.id_places
        ]
        self._type_places = [compile_reader(where) for where in provider.type_places]
        self._time = provider.created_at
        self._read_time = compile_reader(provider.created_at.places) if provider.created_at else None
        self._without_id = provider.without_id
        self._batch = parse_locator(provider.batch, ("json", "form"), root=True) if provider.batch else None
        self._batch_type = provider.batch_type
        self._empty_body = provider.empty_body

    def items(self, request: Request) -> list[Delivery]:
        """Return the events of a request in order; an empty batch has none.

        The body of each is the raw body, or one element of a batch as JSON. With a `problem`, a sentence for
        the person who finds it parked, its id is the body's hash.
        """
        content_type = request.header("content-type")
        if request.payload.problem and (request.body or not self._empty_body):
            return [self._whole(request, f"Its body does not parse: {request.payload.problem}.")]
        media_type = (content_type or "").partition(";")[0].strip().lower()
        if self._batch is None or self._batch_type not in ("", media_type):
            return [self._item(request, request.payload.value, request.body, content_type)]
        # Each event of a batch is written anew: one element's bytes cannot be cut out of the body.
        try:
            elements = self._elements(self._batch, request)
            bodies = [
                json.dumps(element, separators=(",", ":"), allow_nan=False).encode() for element in elements
            ]
        except ValueError as error:
            return [self._whole(request, f"It is not the list of events that this provider sends: {error}.")]
        pairs = enumerate(zip(elements, bodies, strict=True))
        return [self._item(request, el, body, "application/json", number) for number, (el, body) in pairs]

    def _elements(self, place: Locator, request: Request) -> list[Any]:
        """Return the events of a batch; raise UnreadablePayloadError where it is none."""
        if place.kind == "form":
            text = request.form.get(place.name)
            arrays: list[Any] = [parse_json(text.encode()) if isinstance(text, str) else None]
        else:
            arrays = [request.payload.value]
            for step in place.path:
                if step == EVERY:
                    lists = [value if isinstance(value, list) else [value] for value in arrays]
                    arrays = [element for values in lists for element in values]
                else:
                    arrays = [dig(value, (step,)) for value in arrays]
        if not all(isinstance(array, list) for array in arrays):
            raise UnreadablePayloadError(f"there is no array at {place}")
        if sum(map(len, arrays)) > MOST_ITEMS:
            raise UnreadablePayloadError(f"it has more than {MOST_ITEMS} items")
        return [element for array in arrays for element in array]

    def _item(
        self, request: Request, element: Any, body: bytes, content_type: str | None, number: int = 0
    ) -> Delivery:
        event_id = self._event_id(request, element, body, number)
        types = [part for read in self._type_places if (part := read(request, element))]
        time = self._read_time(request, element) if self._read_time else None
        seconds = parse_time(time, self._time.unit) if self._time and time else None
        created_at = problem = None
        if seconds is not None:
            # A time that no calendar has is left out: the event is good without it.
            with suppress(ValueError, OverflowError, OSError):
                created_at = datetime.fromtimestamp(seconds, UTC)
        if not event_id:
            problem = f"It has no event id at {' and '.join(str(where) for where, _ in self._id_places)}."
        return Delivery(
            source=self._source.name,
            event_id=event_id or hashed(body),
            type=storable(".".join(types) or UNKNOWN_TYPE),
            body=body,
            created_at=created_at,
            problem=problem,
            content_type=content_type,
            replay_guard=self._source.replay_guard,
        )

    def _whole(self, request: Request, problem: str) -> Delivery:
        item = self._item(request, None, request.body, request.header("content-type"))
        return replace(item, event_id=hashed(request.body), problem=problem)

    def _event_id(self, request: Request, element: Any, body: bytes, number: int) -> str | None:
        """Return the id by the provider's policy; None where it should have one and has none."""
        if self._policy == "none":
            return str(uuid7())
        if self._policy == "body_hash":
            return hashed(body)
        parts = [
            (where, str(number) if read is None else read(request, element))
            for where, read in self._id_places
        ]
        if all(text or where.optional for where, text in parts):
            return storable("+".join(text for _, text in parts if text))
        if self._without_id == "park":
            return None
        return hashed(body) if self._without_id == "body_hash" else str(uuid7())


@dataclass(frozen=True)
class Endpoint:
    """One `/webhooks/<source>`."""

    source: Source
    scheme: Scheme
    extractor: Extractor
    handshakes: Handshakes

    @property
    def may_wait(self) -> bool:
        """Whether verifying may wait for the network, or for a user's own code."""
        return isinstance(self.scheme, Verifier) and self.scheme.may_wait

    def verify(self, request: Request, now: float) -> None:
        """Raise InvalidSignature unless this request proves its sender, CannotVerify when it is unknown."""
        self.scheme.verify(self.source.secrets, request, now, self.source.tolerance)
        # Our answer to a challenge is a valid signature as well, and anybody can ask for one.
        if self.handshakes.could_be_proof(request.body):
            raise InvalidSignature("bad_signature", "the body is a bare word or empty, as challenges are")

    def confirm(self, request: Request) -> bool:
        """Whether a verified request asked for a confirmation, now given; raises as `verify` does."""
        return isinstance(self.scheme, Verifier) and self.scheme.confirm(request)

    def items(self, request: Request) -> list[Delivery]:
        """Return the events in a verified request, which may be compressed."""
        return self.extractor.items(unpacked(request, self.source.max_body))

    def extract(self, request: Request, address: str | None) -> list[Delivery]:
        """Return one delivery for each event in a verified request that came from this address."""
        names = (*self.source.provider.keep_headers, *self.source.keep_headers)
        headers = {name: value for name in names if (value := request.header(name)) is not None}
        traceparent = current_traceparent()
        return [
            replace(item, headers=headers, address=address, traceparent=traceparent)
            for item in self.items(request)
        ]


def build_endpoints(sources: Mapping[str, Source]) -> dict[str, Endpoint]:
    """Make every source ready once, at start-up; raises ConfigError for one that cannot be verified."""
    keys = FetchedKeys()
    return {
        name: Endpoint(source, build_scheme(source, keys), Extractor(source), Handshakes(source))
        for name, source in sources.items()
    }


def build_scheme(source: Source, keys: Keys) -> Scheme:
    """Return the scheme or verifier of a source's deliveries; raise ConfigError when it cannot be made."""
    code = source.provider.code
    if source.provider.verification is not None:
        return Unverified()
    if code is None:
        return compile_scheme(source.scheme, source.options)
    own = ":" in code  # module:function, a user's
    if not own and code not in VERIFIERS:
        known = suggest(code, VERIFIERS)
        raise ConfigError(f"[{source.name}] the catalogue's code {code!r} is not written{known}.")
    try:
        return load_verifier(code) if own else VERIFIERS[code](source.options, keys)
    except ConfigError as error:
        raise ConfigError(f"[{source.name}] {error}.") from error


def unpacked(request: Request, limit: int) -> Request:
    """Return a gzipped request with its body unpacked, any other as it is.

    A body that does not unpack, or not into `limit` bytes, stays as it is too: it is kept, for a person.
    """
    if (request.header("content-encoding") or "").strip().lower() != "gzip":
        return request
    unpacking = zlib.decompressobj(GZIP)
    try:
        body = unpacking.decompress(request.body, limit + 1)
    except zlib.error:
        return request
    # A second member or bytes behind the end would be lost.
    whole = unpacking.eof and not unpacking.unused_data and len(body) <= limit
    return replace(request, body=body) if whole else request
