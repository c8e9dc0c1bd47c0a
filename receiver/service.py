"""The service: what people may see and do. `/v1`, the dashboard and the command line render what it returns.

Here, once: what a source hides is redacted, workers are nudged for what an action made due, and each refusal
has its HTTP status. Everything returned is a read model of `receiver.ledger.reports`, or what an action did.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from config.sources import Source
from receiver.ledger import control, errors, reports
from receiver.ledger.calls import StoredResponse
from receiver.ledger.control import ActionResult, Resolution
from receiver.ledger.filter import CallFilter, EventFilter
from receiver.ledger.reports import models
from receiver.ledger.schema import check_schema
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from receiver.redaction import Redactor, redactor_of, shown_body

__all__ = [
    "ActionResult",
    "Nudge",
    "Resolution",
    "Service",
    "StoredResponse",
    "describe_sources",
    "refusal",
]

# Wakes workers, as there is work: takes the number of events that became due, never waits and never raises.
Nudge = Callable[[int], None]

# Status, kind and the API's advice of each definite refusal; every other LedgerError is a 503.
_REFUSALS: Sequence[tuple[type[errors.LedgerError], int, str, str]] = (
    (errors.UnknownEvent, 404, "unknown-event", " GET /v1/events lists those there are."),
    (errors.UnknownReplay, 404, "unknown-replay", " POST /v1/replays starts one and says its id."),
    (errors.UnknownCall, 404, "unknown-call", " GET /v1/calls lists those there are."),
    (errors.BadCursor, 422, "bad-cursor", ""),
    (errors.NotAllowed, 409, "not-allowed", ""),
)


def refusal(error: errors.LedgerError) -> tuple[int, str, str] | None:
    """Return status, kind and the API's advice of a definite refusal; None where the ledger is down."""
    for refused, status, kind, advice in _REFUSALS:
        if isinstance(error, refused):
            return status, kind, advice
    return None


def describe_sources(sources: Mapping[str, Source]) -> models.Sources:
    """Return the sources as configured; their secrets are counted, never shown. It needs no ledger."""
    configured = [
        models.SourceView(
            name=source.name,
            provider=source.provider.name,
            path=f"/webhooks/{source.name}",
            secrets=len(source.secrets),
            problem=source.problem,
            warnings=list(source.warnings),
            retention_seconds=int(source.retention.total_seconds()),
            payload_retention_seconds=int(source.payload_retention.total_seconds()),
            max_body=source.max_body,
            on_replay=source.on_replay,
        )
        for source in sources.values()
    ]
    return models.Sources(data=configured, next=None)


def wake_nobody(_count: int) -> None:
    """Leave what is due to the sweeper, which finds it at its next pass."""


@dataclass(frozen=True)
class Service:
    """All that people see and do, on one ledger. Methods raise LedgerError and its kinds."""

    store: Store
    sources: Mapping[str, Source]
    nudge: Nudge = wake_nobody

    def inside(self, transaction: Store, nudge: Nudge) -> "Service":
        """Return this service in a transaction that is under way; `nudge` must wait for its commit."""
        return replace(self, store=transaction, nudge=nudge)

    # What people see.

    def list_events(self, which: EventFilter, *, limit: int, cursor: str | None = None) -> models.EventsView:
        """Return a page of events, newest first."""
        page = reports.list_events(self.store, which, limit=limit, cursor=cursor)
        # Of a listed event only the reason can quote a payload: the others are not read for it.
        page.data = [
            self._redact(event.id, event) if event.reason and self._hides(event.source) else event
            for event in page.data
        ]
        return page

    def find_event(self, source: str, event_id: str) -> UUID:
        """Return the ledger's id of a provider's event."""
        return reports.find_event(self.store, source, event_id)

    def story(self, event: UUID) -> models.Story:
        """Return everything about an event."""
        return self._redact(event, reports.story(self.store, event))

    def original(self, event: UUID) -> tuple[reports.Original, Redactor]:
        """Return an event as it was received, with the redactor that says what of it may be shown."""
        received = reports.original(self.store, event)
        return received, redactor_of(self.sources, received)

    def other_bodies(self, event: UUID) -> list[tuple[reports.OtherBody, Redactor]]:
        """Return an event's conflicting bodies, each with its redactor as `original` has it."""
        return [(body, redactor_of(self.sources, body)) for body in reports.other_bodies(self.store, event)]

    def conflicts(self, event: UUID) -> models.Conflicts:
        """Return an event's conflicting bodies, as far as they may be shown."""
        bodies = reports.other_bodies(self.store, event)
        # All are of one event, and so of one source.
        source = self.sources.get(bodies[0].source) if bodies else None
        paths = source.redact if source else ()
        shown = [body.in_full(shown_body(paths, body.body, body.content_type)) for body in bodies]
        return models.Conflicts(data=shown, next=None)

    def list_calls(self, which: CallFilter, *, limit: int, cursor: str | None = None) -> models.CallsView:
        """Return a page of calls, newest first; their URLs and steps may quote payloads."""
        page = reports.list_calls(self.store, which, limit=limit, cursor=cursor)
        page.data = [
            self._redact(call.event, call) if self._hides(call.source) else call for call in page.data
        ]
        return page

    def call_story(self, call: UUID) -> models.CallStory:
        """Return everything about a call."""
        found = reports.call_story(self.store, call)
        return self._redact(found.call.event, found)

    def list_sources(self) -> models.Sources:
        """Return the sources as `describe_sources` does."""
        return describe_sources(self.sources)

    def stats(self) -> models.Stats:
        """Return figures by source and by API; it reads every event."""
        return reports.stats(self.store)

    def rejections(self, source: str | None = None) -> models.Rejections:
        """Return the rejected deliveries, of one source or all."""
        return reports.rejections(self.store, source)

    def check(self) -> None:
        """Raise LedgerUnavailable or SchemaBehind unless the ledger answers with the right schema."""
        check_schema(self.store)

    def pending(self) -> models.Pending:
        """Return what is on its way and what waits for a person."""
        return reports.pending(self.store)

    def workers(self) -> list[models.WorkerHeartbeat]:
        """Return the workers of the last hour."""
        return reports.workers(self.store)

    def flow(self, minutes: int) -> dict[str, models.Flow]:
        """Return what each source got and did in the last `minutes` minutes."""
        return reports.flow(self.store, minutes)

    def throughput(self, minutes: int) -> models.Throughput:
        """Return the counts of each of the last `minutes` minutes."""
        return reports.throughput(self.store, minutes)

    # What people do; `who` goes into the audit.

    def act(self, what: Move, event: UUID, who: str, *, generation: int | None = None) -> ActionResult:
        """Retry, rerun or discard an event; with `generation`, only while it is still in that one."""
        match what:
            case Move.RETRY:
                acted = control.retry(self.store, event, who, generation=generation)
            case Move.RERUN:
                seen = reports.story(self.store, event).event.generation if generation is None else generation
                acted = control.rerun(self.store, event, who, generation=seen)
            case _:
                acted = control.discard(self.store, event, who, generation=generation)
        return self._nudged(acted)

    def promote(self, event: UUID, body_hash: str, who: str) -> models.PromotedView:
        """Make a conflicting body an event of its own; asked again, return the same one."""
        promoted = control.promote(self.store, event, body_hash, who)
        self.nudge(1)
        return promoted

    def resolve(
        self, call: UUID, how: Resolution, who: str, response: StoredResponse | None = None
    ) -> ActionResult:
        """Say what became of a call whose event is parked, or shall."""
        return self._nudged(control.resolve(self.store, call, how, who, response=response))

    def count(self, what: Move, which: EventFilter) -> models.Counted:
        """Count what a bulk operation would act on now; nothing is done."""
        total = control.bulk_candidates(self.store, what, which)
        return models.Counted(what=what, filter=which.as_json(), dry_run=True, total=total)

    def start_bulk(self, what: Move, which: EventFilter, who: str) -> models.Progress:
        """Write a bulk operation down with its full list; the workers' sweepers carry it out."""
        return control.plan_bulk(self.store, what, which, who)

    def bulk_progress(self, replay: UUID) -> models.Progress:
        """Return how far a bulk operation is."""
        return control.bulk_progress(self.store, replay)

    def step_bulk(self, replay: UUID, batch: int) -> control.BulkStep:
        """Do the next open steps of a bulk operation."""
        return control.step_bulk(self.store, replay, batch=batch)

    def _nudged(self, acted: ActionResult) -> ActionResult:
        if acted.nudge:
            self.nudge(1)
        return acted

    def _hides(self, source: str) -> bool:
        return source in self.sources and bool(self.sources[source].redact)

    def _redact(self, event: UUID, view: models.ShapeT) -> models.ShapeT:
        # Most deployments redact nothing: then the event is not read a second time.
        if not any(source.redact for source in self.sources.values()):
            return view
        return redactor_of(self.sources, reports.original(self.store, event)).redact(view)
