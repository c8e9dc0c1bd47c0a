"""A source made ready at start-up: its compiled scheme and extractor, and what it makes of a request."""

from collections.abc import Mapping
from dataclasses import dataclass

from config.sources import Source
from config.tracing import here
from receiver.extraction import Extractor, Item, compile_extractor
from receiver.ledger import Delivery
from receiver.signatures import Request, Scheme, compile_scheme, verify


@dataclass(frozen=True)
class Endpoint:
    """One `/webhooks/<source>`."""

    source: Source
    scheme: Scheme
    extractor: Extractor

    def verify(self, request: Request, now: float) -> None:
        """Raise InvalidSignature unless one of the source's secrets made this request's signature."""
        verify(self.scheme, self.source.secrets, request, now, self.source.tolerance)

    def deliveries(self, request: Request, address: str | None) -> list[Delivery]:
        """Return one delivery for each event in a verified request."""
        kept = self._kept_headers(request)
        return [self._delivery(item, kept, address) for item in self.extractor.items(request)]

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
        found = {name: request.header(name) for name in names}
        return {name: value for name, value in found.items() if value is not None}


def build_endpoints(sources: Mapping[str, Source]) -> dict[str, Endpoint]:
    """Compile every source once, at start-up; raises ConfigError for a scheme that cannot be compiled."""
    return {
        name: Endpoint(source, compile_scheme(source.scheme, source.options), compile_extractor(source))
        for name, source in sources.items()
    }
