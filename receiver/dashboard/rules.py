"""A source's and a dialect's rules as sentences, made from the configuration as it is loaded."""

from collections.abc import Iterator

from config.apis import Api
from config.dialects import Dialect, Error
from config.providers import PUBLIC_KEY, Provider, SchemeTable
from config.sources import Source, can_be_replayed
from receiver.dashboard.words import duration

DEDUP = {
    "id": "The provider's own id makes an event",
    "composite": "Several values together make an event",
    "body_hash": "The body's hash makes an event: equal bodies are one",
    "none": "Every delivery is an event of its own",
}
STORED = {
    "all": "It keeps every answer, failures too: the same key gets the same failure again.",
    "2xx": "It keeps successes only: after a failure the same key runs again.",
    "final": "It keeps what is final: after a failure of its own the same key runs again.",
}


def source_rules(source: Source) -> Iterator[str]:
    """Say how a source's deliveries are checked, told apart and kept."""
    provider = source.provider
    yield _proof(provider)
    limit = f"{source.tolerance} s" if source.tolerance else None
    longest = provider.longest_tolerance
    if limit or longest:
        yield f"A signed time may be {limit or duration(longest)} old at most."
    where = ", ".join(str(place) for place in provider.id_places)
    yield f"{DEDUP[provider.policy]}{f' ({where})' if where else ''}."
    if can_be_replayed(provider):
        held = "held back for a person" if source.on_replay == "park" else "flagged, and run"
        yield f"Its id is not signed, so equal bytes under a new id are {held}."
    if provider.is_batch:
        yield "One delivery carries several events; each becomes a row of its own."
    yield (
        f"{provider.title} can send an event again for {duration(provider.window)}: {provider.window_reason}."
    )


def dialect_rules(api: Api) -> Iterator[str]:
    """Say how an API treats keys, and what follows for calls to it."""
    dialect = api.dialect
    if not dialect.carries_keys:
        yield "It knows no idempotency keys: a call whose outcome is unknown waits for a person."
        return
    place = f"the header {dialect.header}" if dialect.header else f"the field {dialect.field}"
    yield f"A key travels in {place}, for {', '.join(dialect.covers)}."
    if dialect.repeatable:
        yield f"Sent again without a key: {', '.join(dialect.repeatable)}."
    yield (
        f"A key is trusted for {duration(api.key_life)} from its first use; in its last"
        f" {duration(api.key_margin)} nothing is sent again."
    )
    yield from _meetings(dialect, api)
    if dialect.stored:
        yield STORED[dialect.stored]
    yield _replay(dialect)


def _proof(provider: Provider) -> str:
    if provider.verification is not None:
        return "Nothing proves who sends: whoever knows the address can."
    if provider.scheme is None:
        key = "with a key that the provider publishes" if provider.keyless else "with a shared secret"
        return f"Verified as {provider.title} says, {key}; signed: {', '.join(provider.signs) or 'a token'}."
    return _signing(provider.scheme)


def _signing(scheme: SchemeTable) -> str:
    if scheme.schemes:
        return f"Any of {len(scheme.schemes)} signing schemes may match."
    if scheme.type in PUBLIC_KEY:
        return f"Signed with the provider's private key ({scheme.type}); we hold the public one."
    if scheme.type == "hmac":
        return f"Signed with HMAC-{(scheme.hash or 'sha256').upper()} over {scheme.content or '{body}'}."
    return f"Protected by {scheme.type}; the body is not signed."


def _meetings(dialect: Dialect, api: Api) -> Iterator[str]:
    match dialect.in_flight:
        case Error() as error:
            yield f"While the first copy runs, a second one gets {_error(error)}: we wait."
        case "waits":
            yield "While the first copy runs, a second one waits for its answer."
        case _:
            quiet = duration(api.quiet)
            yield f"What two copies at once do is not said: we wait {quiet} after the deadline."
    match dialect.mismatch:
        case Error() as error:
            yield f"Another request under a used key gets {_error(error)}: a person decides."
        case "separate":
            yield "Another request under a used key is a request of its own."
        case _:
            yield "Whether it notices another request under a used key is not said: we do."


def _replay(dialect: Dialect) -> str:
    replay = dialect.replay
    if replay.header:
        return f"A replayed answer carries {replay.header}: true."
    if replay.status:
        return f"A replayed answer has status {replay.status}; {replay.outcome!r} in it says how it ended."
    return "A replayed answer looks like the first one."


def _error(error: Error) -> str:
    return f"{error.status} {error.code}".strip()
