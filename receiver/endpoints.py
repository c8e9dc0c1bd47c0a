"""A source made ready at start-up: its compiled scheme and extractor, and what it makes of a request."""

from collections.abc import Mapping
from dataclasses import dataclass

from config.sources import Source
from config.tracing import here
from receiver.compression import unpacked
from receiver.extraction import Extractor, Item, compile_extractor
from receiver.handshakes import Handshakes
from receiver.ledger.intake import Delivery
from receiver.signatures import InvalidSignature, Request, Scheme
from receiver.verifiers.base import Verifier
from receiver.verifiers.building import build_scheme
from receiver.verifiers.remote_keys import FetchedKeys, Keys


@dataclass(frozen=True)
class Endpoint:
    """One `/webhooks/<source>`."""

    source: Source
    scheme: Scheme
    extractor: Extractor
    handshakes: Handshakes

    def verify(self, request: Request, now: float) -> None:
        """Raise InvalidSignature unless this request proves its sender, CannotVerify when nobody can tell."""
        self.scheme.verify(self.source.secrets, request, now, self.source.tolerance)
        if self.handshakes.could_be_proof(request.body):
            raise InvalidSignature("bad_signature", "the body is a bare word or empty, as challenges are")

    def confirm(self, request: Request) -> bool:
        """Whether a verified request asked for a confirmation, now given; raises as `verify` does."""
        return isinstance(self.scheme, Verifier) and self.scheme.confirm(request)

    def deliveries(self, request: Request, address: str | None) -> list[Delivery]:
        """Return one delivery for each event in a verified request."""
        kept = self._kept_headers(request)
        return [self._delivery(item, kept, address) for item in self.items(request)]

    def items(self, request: Request) -> list[Item]:
        """Return the events in a verified request, which may be compressed."""
        return self.extractor.items(unpacked(request, self.source.max_body))

    def _delivery(self, item: Item, kept: Mapping[str, str], address: str | None) -> Delivery:
        return Delivery(
            source=self.source.name,
            event_id=item.event_id,
            type=item.type,
            body=item.body,
            headers=kept,
            content_type=item.content_type,
            created_at=item.created_at,
            address=address,
            problem=item.problem,
            replay_guard=self.source.replay_guard,
            traceparent=here(),
        )

    def _kept_headers(self, request: Request) -> dict[str, str]:
        names = (*self.source.provider.keep_headers, *self.source.keep_headers)
        return {name: value for name in names if (value := request.header(name)) is not None}


def build_endpoints(sources: Mapping[str, Source], keys: Keys | None = None) -> dict[str, Endpoint]:
    """Make every source ready once, at start-up; raises ConfigError for one that cannot be verified.

    `keys` is where those come from that providers publish (default: from the providers).
    """
    keys = keys or FetchedKeys()
    return {
        name: Endpoint(
            source,
            build_scheme(source, keys),
            compile_extractor(source),
            Handshakes(source),
        )
        for name, source in sources.items()
    }
