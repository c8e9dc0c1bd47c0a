"""What may be done to an event now, and what each choice does, in plain words."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from receiver.dashboard.words import CHOICES, exact, parse
from receiver.ledger.control import Resolution
from receiver.ledger.states import Move, State, leaves

Told = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """One button. `what` is its name in forms; `key` the keystroke; `not_yet` why it must wait."""

    what: str
    label: str
    effect: str
    key: str
    grave: bool = False
    """Whether something ends or happens twice by it."""
    not_yet: str = ""


def event_choices(event: Told) -> list[Choice]:
    """Return what a person may do to an event in its state."""
    named = {
        Move.RETRY: ("Retry", "r", False),
        Move.RERUN: ("Rerun with new keys", "n", True),
        Move.DISCARD: ("Discard", "d", True),
    }
    return [
        Choice(move, label, CHOICES[move], key, grave)
        for move, (label, key, grave) in named.items()
        if State(event["state"]) in leaves(move) and (move == Move.DISCARD or event["size"] is not None)
    ]


def deciding_call(told: Told) -> Told | None:
    """Return the call that an event is parked for."""
    wanted = told["event"]["parked_call"] if told["event"]["state"] == State.PARKED else None
    found: Told | None = next((call for call in told["calls"] if call["id"] == wanted), None)
    return found


def call_choices(call: Told, now: datetime) -> list[Choice]:
    """Return what a person may say of a call whose event is parked for it."""
    api, is_open = call["api"], any(send["open"] for send in call["sends"])
    twice = " If it did happen after all, it happens twice." if is_open else ""
    quiet = call["quiet_until"]
    not_yet = f"It may still be under way there until {exact(quiet)}." if quiet and parse(quiet) > now else ""
    happened = f"You looked at {api}, and it is there. The handler goes on with the answer you give."
    stored = "Sends the bytes that are stored, under their key, though the handler asks for others now."
    again = f"You looked at {api}, and it is not there. It goes out under a new key.{twice}"
    ended = "Ends the event. The call stays as it is, whatever became of it."
    found = [Choice(Resolution.HAPPENED, "It happened", happened, "h")]
    if call["changed_to"] and not call["use_stored"]:
        found.append(Choice(Resolution.USE_STORED, "Send the stored bytes", stored, "u"))
    return [
        *found,
        Choice(Resolution.RESEND_AS_NEW, "Send it as new", again, "s", bool(twice), not_yet),
        Choice(Resolution.GIVE_UP, "Give up", ended, "g", grave=True),
    ]


def why(told: Told) -> str:
    """Say in plain words why an event stands still."""
    event, call = told["event"], deciding_call(told)
    reason = str(event["reason"] or told["next"])
    if call is None:
        return reason
    if any(send["open"] for send in call["sends"]):
        doubt = f"Nobody knows whether call {call['step']!r} happened: look at {call['api']}."
        return f"{doubt} {call['reason'] or ''}".strip()
    return reason
