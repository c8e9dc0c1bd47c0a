"""Log lines: their content, what they leave out, and how they reach stderr."""

import io
import json
import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from select import PIPE_BUF
from typing import Any

import pytest
import structlog

from config.logs import LineHandler, about, bind, line_formatter, unbind
from config.nesting import MAX_DEPTH
from tests.services.checkout import CHECKOUT

CANARY = "canary-51c0"


def record(message: str, *arguments: Any, name: str = "worker.runner", **more: Any) -> logging.LogRecord:
    """Return a log record."""
    made = logging.makeLogRecord({"name": name, "levelname": "ERROR", "levelno": logging.ERROR, **more})
    made.msg, made.args = message, arguments[0] if more.pop("named", False) else arguments
    return made


def line(made: logging.LogRecord) -> dict[str, Any]:
    """Return a record's JSON line."""
    found: dict[str, Any] = json.loads(line_formatter("json").format(made))
    return found


def failure() -> Any:
    """Return the exc_info of an error with a cause, whose messages and locals quote a payload."""
    payload = CANARY
    try:
        try:
            raise KeyError(payload)
        except KeyError as cause:
            raise ValueError(f"cannot read {payload}") from cause
    except ValueError:
        return sys.exc_info()


def test_a_line_is_one_json_object() -> None:
    """Time, level, logger and message come first; a line break in a message does not break the line."""
    found = line(record("Two\nlines: %d", 7))
    assert list(found) == ["time", "level", "logger", "message"]
    assert (found["level"], found["logger"], found["message"]) == ("error", "worker.runner", "Two\nlines: 7")
    assert found["time"].endswith("Z")


def test_text_lines_escape_control_characters() -> None:
    """A sender cannot forge a line or move the terminal's cursor; letters stay."""
    shown = line_formatter("text").format(record("Event of type %s: done", "caf\u00e9\n2026 [error] \x1b[2J"))
    assert "caf\u00e9\\n2026 [error] \\x1b[2J: done" in shown
    assert (shown.count("\n"), "\x1b" in shown) == (0, False)


def test_bound_facts_are_on_every_line_of_their_scope() -> None:
    """The innermost value wins."""
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


def test_the_fast_path_writes_what_structlog_does() -> None:
    """Web's plain lines skip structlog's chain and must look the same."""
    made = record("%s: %d", "/x", 200, name="receiver.telemetry", status=200, ms=1.5, data=CANARY)
    made.created = 1_780_000_000.25
    short = line_formatter("json")
    with about(event="e1", attempt=1):
        quick, slow = json.loads(short.format(made)), json.loads(super(type(short), short).format(made))
    assert {**quick, "time": ""} == {**slow, "time": ""}
    assert quick["time"] == "2026-05-28T20:26:40.250000Z"


@pytest.mark.parametrize("form", ["json", "text"])
def test_an_error_is_logged_by_type_and_place(form: Any) -> None:
    """For each error of the chain; no message and no local variable."""
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
def test_errors_in_a_librarys_messages_are_logged_by_type(message: str, arguments: Any, named: bool) -> None:  # noqa: FBT001
    """Our own messages are sentences and stay."""
    made = record(message, arguments, name="celery.app.trace", named=named)
    assert CANARY not in json.dumps(line(made))
    if not named:
        ours = record("The ledger: %s", ValueError("It is away."))
        assert line(ours)["message"] == "The ledger: It is away."


def test_unknown_extras_are_left_out() -> None:
    """Celery adds arguments and results."""
    found = line(record("Done.", data={"args": CANARY}, status=200))
    assert CANARY not in json.dumps(found)
    assert found["status"] == 200


def test_a_handler_with_structlog_writes_the_same_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """`structlog.get_logger()` in a handler needs no set-up."""
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


def test_an_error_logged_with_structlog_is_logged_by_type(capsys: pytest.CaptureFixture[str]) -> None:
    """Structlog passes the error inside the message."""
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
    output = capsys.readouterr().out
    assert CANARY not in output
    assert (json.loads(output)["message"], "ValueError" in output) == ("Broke.", True)


class Blocked(io.StringIO):
    """A stream whose writes block until `go_on` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on, self.ended = threading.Event(), threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        """Wait, then write."""
        self.begun.set()
        try:
            assert self.go_on.wait(60)
            return super().write(text)
        finally:
            self.ended.set()


def test_a_blocked_stderr_blocks_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are queued up to a bound; a line tells how many were dropped."""
    monkeypatch.setattr("config.logs.MAX_WAITING", 3)
    stream = Blocked()
    handler = LineHandler(stream)
    handler.handle(record("first"))
    assert stream.begun.wait(60)
    others = [threading.Thread(target=handler.handle, args=(record("later"),), daemon=True) for _ in range(8)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
    assert not any(other.is_alive() for other in others)
    stream.go_on.set()
    handler.flush()
    handler.handle(record("last"))
    handler.flush()
    dropped = "5 lines were dropped while stderr was blocked."
    assert stream.getvalue().splitlines() == ["first", *["later"] * 3, dropped, "last"]


def test_an_exit_does_not_wait_for_a_blocked_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last lines get a short time to be written."""
    monkeypatch.setattr("config.logs.PATIENCE", 0.01)
    stream = Blocked()
    handler = LineHandler(stream)
    handler.handle(record("first"))
    handler.flush()
    assert not stream.ended.is_set(), "flush waited for the write"
    stream.go_on.set()


def test_lines_of_concurrent_threads_stay_whole() -> None:
    """Each of a thousand lines is written once and in one piece."""
    handler = LineHandler(stream := io.StringIO())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: handler.handle(record("line %d of many", number)), range(1000)))
    handler.flush()
    assert sorted(stream.getvalue().splitlines()) == sorted(
        f"line {number} of many" for number in range(1000)
    )


def test_no_write_exceeds_pipe_buf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes share a pipe, so a batch is written in pieces of whole lines."""
    handler = LineHandler(stream := Blocked())
    pieces: list[str] = []
    monkeypatch.setattr(stream, "flush", lambda: pieces.append(stream.getvalue()[sum(map(len, pieces)) :]))
    handler.handle(record("first"))
    for number in range(300):
        handler.handle(record("line %d of many %s", number, "x" * 50))
    stream.go_on.set()
    handler.flush()
    assert max(map(len, pieces)) <= PIPE_BUF
    assert all(piece.endswith("\n") for piece in pieces if piece)
    assert len("".join(pieces).splitlines()) == 301


def run_python(code: str) -> list[str]:
    """Run a program in a process of its own; return the messages on its stderr."""
    argv = [sys.executable, "-W", "ignore", "-c", code]
    ended = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line)["message"] for line in ended.stderr.splitlines()]


def test_an_orderly_exit_loses_no_line() -> None:
    """Queued lines are written when the interpreter ends, those of a finished thread too."""
    code = """
import logging, threading
from config.logs import set_up_logs
set_up_logs("json")
def work():
    for number in range(500):
        logging.getLogger("receiver.tests").info("line %d", number)
thread = threading.Thread(target=work)
thread.start()
thread.join()
logging.getLogger("tests").error("the end")
"""
    assert run_python(code) == [*(f"line {number}" for number in range(500)), "the end"]


def test_a_forked_process_writes_its_own_lines_only() -> None:
    """A line queued at the fork is written once; the child has its own writer."""
    code = """
import logging, os
from config.logs import set_up_logs
set_up_logs("json")
log = logging.getLogger("tests")
for number in range(100):
    log.info("parent %d", number)
if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
else:
    log.info("child")
    logging.shutdown()
    os._exit(0)
"""
    assert sorted(run_python(code)) == sorted([*(f"parent {number}" for number in range(100)), "child"])


def test_a_process_of_multiprocessing_loses_no_line() -> None:
    """It ends without logging's exit hook."""
    code = """
import logging, multiprocessing
from config.logs import set_up_logs
def work():
    set_up_logs("json")
    for number in range(100):
        logging.getLogger("tests").info("line %d", number)
process = multiprocessing.get_context("fork").Process(target=work)
process.start()
process.join()
"""
    assert run_python(code) == [f"line {number}" for number in range(100)]
