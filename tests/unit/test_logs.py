"""The form of log lines: what a line holds, and what is left out of it."""

import io
import json
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import structlog

from config.logs import Stderr, about, bind, line_formatter, unbind
from config.nesting import MAX_DEPTH

CANARY = "canary-51c0"


def record(message: str, *arguments: Any, name: str = "worker.runner", **more: Any) -> logging.LogRecord:
    """Return a record as `logging` makes it."""
    made = logging.makeLogRecord({"name": name, "levelname": "ERROR", "levelno": logging.ERROR, **more})
    made.msg, made.args = message, arguments[0] if more.pop("named", False) else arguments
    return made


def line(made: logging.LogRecord) -> dict[str, Any]:
    """Return the JSON line of a record."""
    found: dict[str, Any] = json.loads(line_formatter("json").format(made))
    return found


def failure() -> Any:
    """Return the exc_info of an error with a cause, whose texts and values quote a payload."""
    payload = CANARY
    try:
        try:
            raise KeyError(payload)  # noqa: TRY301 - the chain is the point
        except KeyError as cause:
            raise ValueError(f"cannot read {payload}") from cause
    except ValueError:
        return sys.exc_info()


def test_a_line_is_one_json_object() -> None:
    """Time, level, logger and message come first; a line break in a message breaks no line."""
    found = line(record("Two\nlines: %d", 7))
    assert list(found) == ["time", "level", "logger", "message"]
    assert (found["level"], found["logger"], found["message"]) == ("error", "worker.runner", "Two\nlines: 7")
    assert found["time"].endswith("Z")


def test_what_was_sent_forges_no_line_for_people() -> None:
    """A line break, or what moves a terminal's cursor, is written as its escape; letters stay."""
    shown = line_formatter("text").format(record("Event of type %s: done", "caf\u00e9\n2026 [error] \x1b[2J"))
    assert "caf\u00e9\\n2026 [error] \\x1b[2J: done" in shown
    assert (shown.count("\n"), "\x1b" in shown) == (0, False)


def test_facts_stand_on_every_line_inside() -> None:
    """What was bound is on a line until it is left or forgotten; the inner fact wins."""
    unbind()
    bind(request="r1")
    with about(event="e1", attempt=1):
        with about(attempt=2, call="c1"):
            inner = line(record("in"))
        outer = line(record("out"))
    assert {name: inner.get(name) for name in ("request", "event", "attempt", "call")} == {
        "request": "r1",
        "event": "e1",
        "attempt": 2,
        "call": "c1",
    }
    assert (outer["event"], outer["attempt"], outer.get("call")) == ("e1", 1, None)
    unbind()
    assert "request" not in line(record("after"))


def test_the_short_way_writes_what_the_long_one_does() -> None:
    """A plain line of ours is formatted at once; structlog's chain would write the same."""
    made = record("%s: %d", "/x", 200, name="receiver.telemetry", status=200, ms=1.5, data=CANARY)
    made.created = 1_780_000_000.25
    short = line_formatter("json")
    with about(event="e1", attempt=1):
        quick, slow = json.loads(short.format(made)), json.loads(super(type(short), short).format(made))
    assert {**quick, "time": ""} == {**slow, "time": ""}
    assert quick["time"] == "2026-05-28T20:26:40.250000Z"


def test_lines_of_threads_that_log_at_once_stay_whole(capfd: pytest.CaptureFixture[str]) -> None:
    """Eight threads write a thousand lines: each line is there, once and in one piece."""
    handler, log = Stderr(sys.stderr), logging.getLogger("tests.many")
    log.addHandler(handler)
    log.propagate = False
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: log.error("line %d of many", number), range(1000)))
    log.removeHandler(handler)
    told = sorted(capfd.readouterr().err.splitlines())
    assert told == sorted(f"line {number} of many" for number in range(1000))


@pytest.mark.parametrize("form", ["json", "text"])
def test_an_error_is_told_by_type_and_place(form: Any) -> None:
    """Its chain and where each was raised; no text of it and no value of its frames."""
    text = line_formatter(form).format(record("Broke.", exc_info=failure()))
    assert CANARY not in text
    assert "ValueError" in text
    assert "KeyError" in text
    assert f"{__name__}:" in text
    assert " failure" in text


@pytest.mark.parametrize(
    ("message", "arguments", "named"),
    [
        ("Cannot connect: %s", ValueError(CANARY), False),
        ("Task %(name)s raised %(exc)s", {"name": "wake", "exc": f"ValueError({CANARY!r})"}, True),
        ("Task %(name)s\n%(traceback)s", {"name": "wake", "traceback": CANARY}, True),
        ("Task %(error)s", {"error": ValueError(CANARY)}, True),
    ],
)
def test_a_librarys_errors_are_types_too(message: str, arguments: Any, named: bool) -> None:  # noqa: FBT001
    """Libraries put errors into their messages; ours write sentences, which stand."""
    made = record(message, arguments, name="celery.app.trace", named=named)
    assert CANARY not in json.dumps(line(made))
    if not named:
        ours = record("The ledger: %s", ValueError("It is away."))
        assert line(ours)["message"] == "The ledger: It is away."


def test_what_a_library_adds_to_a_record_is_left_out() -> None:
    """Celery adds its arguments and results; only the extras that we know are shown."""
    found = line(record("Done.", data={"args": CANARY}, status=200))
    assert CANARY not in json.dumps(found)
    assert found["status"] == 200


def test_a_handler_with_structlog_writes_the_same_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """`structlog.get_logger()` in a handler needs no set-up of its own."""
    endless: list[Any] = []
    endless.append(endless)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(line_formatter("json"))
    log = logging.getLogger("my.handlers")
    log.addHandler(handler)
    log.propagate = False
    wrap = structlog.stdlib.ProcessorFormatter.wrap_for_formatter
    processors = [structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name,
                  structlog.processors.TimeStamper(key="time"), wrap]  # fmt: skip
    structlog.wrap_logger(log, processors=processors, wrapper_class=structlog.stdlib.BoundLogger).error(
        "Shipped.", order=7, cycle=endless
    )
    log.removeHandler(handler)
    found = json.loads(capsys.readouterr().out)
    assert (found["message"], found["order"]) == ("Shipped.", 7)
    assert found["cycle"] == f"nested too deeply (more than {MAX_DEPTH} levels)", "no line fails its attempt"


def test_an_error_of_ours_by_structlog_is_a_type_too(capsys: pytest.CaptureFixture[str]) -> None:
    """Structlog hands its error over inside the message, and no line quotes it."""
    handler, log = logging.StreamHandler(sys.stdout), logging.getLogger("receiver.tests")
    handler.setFormatter(line_formatter("json"))
    log.addHandler(handler)
    log.propagate = False
    processors = [structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name,
                  structlog.processors.TimeStamper(key="time"),
                  structlog.stdlib.ProcessorFormatter.wrap_for_formatter]  # fmt: skip
    ours = structlog.wrap_logger(log, processors=processors, wrapper_class=structlog.stdlib.BoundLogger)
    ours.error("Broke.", exc_info=ValueError(CANARY))
    log.removeHandler(handler)
    told = capsys.readouterr().out
    assert CANARY not in told
    assert (json.loads(told)["message"], "ValueError" in told) == ("Broke.", True)


class Slow(io.StringIO):
    """A stream whose first write takes until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        """Wait, then write."""
        self.begun.set()
        assert self.go_on.wait(60)
        return super().write(text)


def test_a_line_that_comes_during_a_write_is_written() -> None:
    """Who logs while another thread writes does not wait, and its line follows at once."""
    stream = Slow()
    handler = Stderr(stream)
    first = threading.Thread(target=handler.handle, args=(record("first"),), daemon=True)
    first.start()
    assert stream.begun.wait(60)
    second = threading.Thread(target=handler.handle, args=(record("second"),), daemon=True)
    second.start()
    second.join(60)
    assert not second.is_alive()
    stream.go_on.set()
    first.join(60)
    assert stream.getvalue() == "first\nsecond\n"
