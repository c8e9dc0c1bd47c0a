"""Providers, sources, APIs, states and actions in words: the sentences that people read, each once.

`proof`, `scheme`, `places`, `event_id`, `handshake`, `answer`, `verified` and `trust` describe a provider's
entry, for `firstseen providers` and docs/providers.md. `source_rules` and `dialect_rules` describe a source
and an API as they are configured, for the pages. `STATES`, `ACTIONS`, `RESOLUTIONS` and the functions below
them say where an event stands and what a person can do, for the pages and the command line.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Final

from config import providers
from config.apis import Api
from config.dialects import Error
from config.sources import Source, can_be_replayed
from config.toml import in_words
from receiver.ledger.control import Resolution
from receiver.ledger.reports.models import EventInFull, Story, ToldCall
from receiver.ledger.states import Move, State, leaves

ALGORITHMS = {"ed25519": "Ed25519", "ecdsa": "ECDSA", "rsa": "RSA (PKCS #1 v1.5)", "hash": "plain"}

KEYS = {
    "base64": "the secret is base64",
    "hex": "the secret is hex",
    "ed25519-hex": "the secret is the provider's public key, 32 bytes in hex",
    "ed25519-base64": "the secret is the provider's public key, 32 bytes in base64",
    "spki-base64": "the secret is the provider's public key, base64 of DER (SPKI)",
    "pem": "the secret is the provider's public key, in PEM",
}

UNITS = {"s": "seconds", "ms": "milliseconds", "iso8601": "ISO 8601"}

KINDS = {
    "header": "header {}",
    "json": "{} in the body",
    "item": "{} in each item",
    "query": "{} in the query",
    "form": "{} in the form",
    "sig": "{}= in the signature",
}


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


def proof(provider: providers.Provider) -> str:
    """Say in a few words what proves the sender."""
    if provider.scheme is not None:
        names = {"token": "token", "basic": "HTTP Basic", "any_of": "one of several"}
        return names.get(provider.scheme.type) or _algorithm(provider.scheme)
    if provider.verification is not None:
        return "nothing"
    return "code" if provider.code else "as the source says"


def scheme(provider: providers.Provider) -> list[str]:
    """Say how deliveries are verified, a sentence a line."""
    if provider.verification is not None:
        return ["nothing is signed: a source must say unverified = true, and its handler ask the provider"]
    if provider.code is not None:
        needs = f", with options.{', options.'.join(provider.options)}" if provider.options else ""
        return [f"verified by code, {provider.code}{needs}"]
    if provider.scheme is None:
        return ["described in the source's options"]
    return list(_scheme_lines(provider.scheme))


def _scheme_lines(table: providers.SchemeTable) -> Iterator[str]:
    if table.schemes:
        for number, alternative in enumerate(table.schemes, 1):
            yield from (f"{number}. {line}" for line in _scheme_lines(alternative))
        return
    if table.signature is not None:
        yield _signature(table, table.signature)
    if table.key is not None or table.type in providers.PUBLIC_KEY:
        key = table.key or providers.KeyTable(encoding="pem")
        bare = f", without {key.strip_prefix!r}" if key.strip_prefix else ""
        yield KEYS.get(key.encoding, "the secret is used as it is") + bare
    if table.timestamp is not None:
        tolerance = table.timestamp.tolerance
        limit = f"at most {tolerance} s from now" if tolerance else "with no limit of its own"
        yield f"its time is in {places(table.timestamp.at)}, in {UNITS[table.timestamp.unit]}, {limit}"
    for place, value in table.require.items():
        yield f"{places(place)} must be {value}"


def _signature(table: providers.SchemeTable, signature: providers.SignatureTable) -> str:
    where = places(signature.at)
    after = f" after {signature.prefix!r}" if signature.prefix else ""
    if table.type == "token":
        return f"the secret itself in {where}{after}: it proves the sender, not the bytes"
    if table.type == "basic":
        return f"HTTP Basic in {where}; the secret is user:password, and proves the sender, not the bytes"
    pairs = f", as {signature.field}{signature.pair_sep}..." if signature.field else ""
    several = ", any of several" if signature.list_sep or signature.places.several else ""
    content = (table.content or "").replace("\n", "\\n")
    return f"{_algorithm(table)} of {content}, in {signature.encoding}, in {where}{after}{pairs}{several}"


def _algorithm(table: providers.SchemeTable) -> str:
    digest = (table.hash or "").upper()
    if table.type == "hmac":
        return f"HMAC-{digest}"
    return f"{ALGORITHMS[table.type]} {digest}".strip()


def places(text: str) -> str:
    """Say where a locator reads."""
    joined, word = ("||", " and ") if "||" in text else ("|", " or ")
    return word.join(_place(part) for part in text.split(joined))


def _place(text: str) -> str:
    kind, _, name = text.removesuffix("?").partition(":")
    if (kind, name) == ("item", "#"):
        return "the item's place in the batch"
    if not name:
        return "the whole body"
    return KINDS[kind].format(name.replace("\\.", ".")) + (" (if there)" if text.endswith("?") else "")


def event_id(provider: providers.Provider) -> str:
    """Say what makes two deliveries one event."""
    if provider.custom:
        return "as the source says"
    if not provider.event_id:
        return {"none": "none: each delivery is an event of its own"}.get(provider.policy, "the body's hash")
    parts = " + ".join(places(part) for part in provider.event_id)
    other = {"body_hash": "; without it the body's hash", "none": "; without it each is an event of its own"}
    unsigned = "" if provider.id_is_signed or not provider.signs_body else "; not signed"
    return parts + other.get(provider.without_id, "") + unsigned


def handshake(table: providers.HandshakeTable) -> str:
    """Say which request is a handshake, and how it is answered."""
    special = {
        providers.ANY: "is there",
        providers.ABSENT: "is not there",
        providers.VERIFY_TOKEN: "is the source's verify token",
    }
    conditions = [
        f"{places(place)} {special.get(value, f'is {value}')}" for place, value in table.when.items()
    ]
    if table.challenge:
        conditions.append(f"{places(table.challenge)} holds a challenge")
    when = f" where {' and '.join(conditions)}" if conditions else ""
    content = [f"{name}: {value}" for name, value in table.headers.items()]
    if isinstance(table.answer, Mapping):
        content += ["JSON of " + ", ".join(f"{key} = {value}" for key, value in table.answer.items())]
    elif table.answer:
        content += [f"the text {table.answer}"]
    answered = f" with {' and '.join(content)}" if content else " with no body"
    opt_in = "signed" if table.signed else "unsigned, so only with handshake = true in the source"
    return f"{table.method}{when}: {table.status}{answered} ({opt_in})"


def answer(provider: providers.Provider) -> str:
    """Say what an event is answered with, and by when; empty for what is usual."""
    parts = []
    if provider.success_status != HTTPStatus.OK or provider.success_body is not None:
        body = {None: "", "": " with no body"}.get(provider.success_body, f" with {provider.success_body}")
        parts.append(f"{provider.success_status}{body}")
    if provider.empty_rejection:
        parts.append("rejections with no body")
    if provider.deadline:
        parts.append(f"within {in_words(provider.deadline)}")
    return ", ".join(parts)


def verified(provider: providers.Provider) -> str:
    """Say how far the entry can be trusted; empty for what a source describes itself."""
    if provider.custom:
        return ""
    checked = "read in official sources" if provider.verified else "unverified: not read in official sources"
    return f"{checked}; nobody read: {', '.join(provider.unread)}" if provider.unread else checked


def trust(provider: providers.Provider) -> str:
    """Say the same in a word or two, for a table."""
    if provider.custom:
        return ""
    if not provider.verified:
        return "no"
    return f"but for {', '.join(provider.unread)}" if provider.unread else "yes"


def exact(at: datetime | None) -> str:
    """Write a time for people, to the second, in UTC."""
    return at.strftime("%Y-%m-%d %H:%M:%S UTC") if at else ""


def duration(value: timedelta) -> str:
    """Write a configured duration with a blank before its unit: `30 d`."""
    return re.sub(r"(?<=\d)(?=[a-z])", " ", in_words(value))


def source_rules(source: Source) -> Iterator[str]:
    """Say how a source's deliveries are checked, told apart and kept."""
    provider = source.provider
    yield _sender_proof(provider)
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
    yield from _collisions(api)
    if dialect.stored:
        yield STORED[dialect.stored]
    replay = dialect.replay
    if replay.header:
        yield f"A replayed answer carries {replay.header}: true."
    elif replay.status:
        yield f"A replayed answer has status {replay.status}; {replay.outcome!r} in it says how it ended."
    else:
        yield "A replayed answer looks like the first one."


def _sender_proof(provider: providers.Provider) -> str:
    if provider.verification is not None:
        return "Nothing proves who sends: whoever knows the address can."
    table = provider.scheme
    if table is None:
        key = "with a key that the provider publishes" if provider.keyless else "with a shared secret"
        return f"Verified as {provider.title} says, {key}; signed: {', '.join(provider.signs) or 'a token'}."
    if table.schemes:
        return f"Any of {len(table.schemes)} signing schemes may match."
    if table.type in providers.PUBLIC_KEY:
        return f"Signed with the provider's private key ({table.type}); we hold the public one."
    if table.type == "hmac":
        return f"Signed with HMAC-{(table.hash or 'sha256').upper()} over {table.content or '{body}'}."
    return f"Protected by {table.type}; the body is not signed."


def _collisions(api: Api) -> Iterator[str]:
    """Say what an API does with a second copy, and with another request under a used key."""
    match api.dialect.in_flight:
        case Error() as error:
            yield f"While the first copy runs, a second one gets {_error(error)}: we wait."
        case "waits":
            yield "While the first copy runs, a second one waits for its answer."
        case _:
            quiet = duration(api.quiet)
            yield f"What two copies at once do is not said: we wait {quiet} after the deadline."
    match api.dialect.mismatch:
        case Error() as error:
            yield f"Another request under a used key gets {_error(error)}: a person decides."
        case "separate":
            yield "Another request under a used key is a request of its own."
        case _:
            yield "Whether it notices another request under a used key is not said: we do."


def _error(error: Error) -> str:
    return f"{error.status} {error.code}".strip()


STATES: Final[Mapping[str, str]] = {
    "received": "Recorded; no worker has claimed it yet.",
    "processing": "A worker runs its handler now.",
    "waiting": "Runs again by itself when it is due.",
    "done": "Its handler came through, and every call is final.",
    "parked": "Stands still until a person decides.",
    "dead": "Failed for good, or was discarded.",
    "ignored": "No handler takes its type.",
}


@dataclass(frozen=True)
class ActionWords:
    """One action of a person, in the words that the pages and the command line show."""

    label: str
    """The button's."""
    key: str
    """The keystroke on the page."""
    effect: str
    """What it does; of a call with `{api}`, and `{twice}` where it may happen twice by it."""
    done: str
    """What the page says afterwards."""
    past: str
    """What the timeline says, after the person's name."""
    command_line: str
    """Of an event, what the command line says of it afterwards; of a call, the option's help."""
    grave: bool = False
    """Whether something ends or happens twice by it."""


# What a person may do to an event.
ACTIONS: Final[Mapping[Move, ActionWords]] = {
    Move.RETRY: ActionWords(
        "Retry",
        "r",
        "Runs the handler again in the same generation. Calls that succeeded are not sent again;"
        " the others go out under the keys they have.",
        "Retried: it runs as soon as a worker is free.",
        "retried it",
        "is due again",
    ),
    Move.RERUN: ActionWords(
        "Rerun with new keys",
        "n",
        "Starts the next generation with new keys: every effect happens again, those that happened"
        " before too.",
        "A new generation runs as soon as a worker is free.",
        "started a new generation",
        "runs again",
        grave=True,
    ),
    Move.DISCARD: ActionWords(
        "Discard",
        "d",
        "Ends it for good: no handler runs, and no later delivery brings it back.",
        "Discarded.",
        "discarded it",
        "is discarded",
        grave=True,
    ),
}

# What a person may say of a call, in the order of the command line's options.
RESOLUTIONS: Final[Mapping[Resolution, ActionWords]] = {
    Resolution.HAPPENED: ActionWords(
        "It happened",
        "h",
        "You looked at {api}, and it is there. The handler goes on with the answer you give.",
        "Noted that it happened; the event goes on.",
        "said that the call happened",
        "It happened: the handler goes on with --response.",
    ),
    Resolution.RESEND_AS_NEW: ActionWords(
        "Send it as new",
        "s",
        "You looked at {api}, and it is not there. It goes out under a new key.{twice}",
        "It goes out under a new key as soon as a worker is free.",
        "had the call sent as new",
        "Send it as a new call, under a new key.",
    ),
    Resolution.USE_STORED: ActionWords(
        "Send the stored bytes",
        "u",
        "Sends the bytes that are stored, under their key, though the handler asks for others now.",
        "The stored bytes go out as soon as a worker is free.",
        "had the stored bytes sent",
        "Send the stored bytes, though the handler asks for others now.",
    ),
    Resolution.GIVE_UP: ActionWords(
        "Give up",
        "g",
        "Ends the event. The call stays as it is, whatever became of it.",
        "Given up; the event has ended.",
        "gave the call up",
        "Leave it, and end its event.",
        grave=True,
    ),
}

_PAST: Final[Mapping[str, str]] = {
    **{action: words.past for action, words in ACTIONS.items()},
    **{how: words.past for how, words in RESOLUTIONS.items()},
    "promote": "made a conflicting body an event of its own",
}


def past(action: str) -> str:
    """Say what a person did, after the name, from an action as the audit has it."""
    return _PAST.get(action, action)


@dataclass(frozen=True)
class Choice:
    """One button. `what` is its name in forms; `key` the keystroke; `not_yet` why it must wait."""

    what: str
    label: str
    effect: str
    key: str
    grave: bool = False
    not_yet: str = ""


def event_choices(event: EventInFull) -> list[Choice]:
    """Return what a person may do to an event in its state."""
    return [
        Choice(move, words.label, words.effect, words.key, words.grave)
        for move, words in ACTIONS.items()
        # Without a payload an event cannot run again, only end.
        if event.state in leaves(move) and (move == Move.DISCARD or event.size is not None)
    ]


def deciding_call(story: Story) -> ToldCall | None:
    """Return the call that an event is parked for."""
    wanted = story.event.parked_call if story.event.state == State.PARKED else None
    return next((call for call in story.calls if call.id == wanted), None)


def call_choices(call: ToldCall, now: datetime) -> list[Choice]:
    """Return what a person may say of a call whose event is parked for it."""
    twice = " If it did happen after all, it happens twice." if any(send.open for send in call.sends) else ""
    quiet = call.quiet_until
    not_yet = f"It may still be under way there until {exact(quiet)}." if quiet and quiet > now else ""
    offered = [Resolution.HAPPENED, Resolution.RESEND_AS_NEW, Resolution.GIVE_UP]
    if call.changed_to and not call.use_stored:
        offered.insert(1, Resolution.USE_STORED)
    return [
        Choice(
            how,
            words.label,
            words.effect.format(api=call.api, twice=twice),
            words.key,
            words.grave or (how == Resolution.RESEND_AS_NEW and bool(twice)),
            not_yet if how == Resolution.RESEND_AS_NEW else "",
        )
        for how in offered
        for words in [RESOLUTIONS[how]]
    ]


def why_stuck(story: Story) -> str:
    """Say in plain words why an event stands still."""
    call, reason = deciding_call(story), story.event.reason or story.next
    if call is None or not any(send.open for send in call.sends):
        return reason
    doubt = f"Nobody knows whether call {call.step!r} happened: look at {call.api}."
    return f"{doubt} {call.reason or ''}".strip()
