"""Log lines of every process: JSON, or text in a terminal. They hold facts, never an event's data.

`set_up_logs` sends all loggers to stderr. `begin`, `bind` and `unbind` keep the facts that stand on a
thread's lines, `about` adds some for a while. A thread formats its own lines; one other writes those of all.
"""

import copy
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from multiprocessing.util import Finalize
from queue import SimpleQueue
from select import PIPE_BUF
from traceback import walk_tb
from types import TracebackType
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from config.nesting import NestedTooDeeplyError, check_depth

Form = Literal["auto", "json", "text"]

CHATTY = (
    # They log routine work, which our own lines report already.
    "celery.worker.strategy",
    "celery.app.trace",
    "kombu",
    "amqp",
    "alembic",
    "celery.worker.consumer.connection",
    # Both log addresses, whose query strings may hold data.
    "httpx",
    "httpcore",
)
# Packages whose own lines show the text of an error: a sentence of ours, without data.
OURS = frozenset({"config", "receiver", "worker", "firstseen"})

# The package whose plain lines skip structlog's chain; a handler's may have facts bound by structlog.
QUICK = "receiver"

# Extra members of a record that a line may have. Celery also adds arguments and results to its own lines.
EXTRA = ("status", "ms", "send", "outcome", "verdicts")

# Frames shown of an error, the innermost.
PLACES = 12

# Lines that may wait for stderr, a few megabytes; further ones are dropped and counted.
MAX_WAITING = 10_000

# Seconds between two writes: waking the writer for each line would cost more than the line.
PAUSE = 0.02

# Seconds that a process which ends waits for its last lines to be written.
PATIENCE = 1.0

log = logging.getLogger(__name__)


def set_up_logs(form: Form) -> None:
    """Send every logger's lines, and Python's warnings, to stderr in one form."""
    handler = LineHandler(sys.stderr)
    handler.setFormatter(line_formatter(form))
    # Without effect where a host, such as a test runner, has handlers of its own already.
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(capture=True)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*_shared_processors(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def log_uncaught() -> None:
    """Log what no code catches, in any thread: Python itself would print the error's text."""

    def uncaught(kind: type[BaseException], error: BaseException | None, _: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt | SystemExit):
            # Python passes None where it could not make the error itself.
            log.critical("Nothing caught this.", exc_info=error or kind())

    sys.excepthook = uncaught
    threading.excepthook = lambda failed: uncaught(failed.exc_type, failed.exc_value, None)
    sys.unraisablehook = lambda failed: uncaught(failed.exc_type, failed.exc_value, None)


_FACTS: ContextVar[Mapping[str, object]] = ContextVar("facts", default={})  # noqa: B039 - never written to


def bind(**facts: object) -> None:
    """Put facts on every line that this thread logs from now on."""
    _FACTS.set({**_FACTS.get(), **_as_facts(facts)})


def begin(**facts: object) -> None:
    """Replace this thread's facts, at the start of another piece of work."""
    _FACTS.set(_as_facts(facts))


def unbind() -> None:
    """Forget this thread's facts."""
    _FACTS.set({})


@contextmanager
def about(**facts: object) -> Iterator[None]:
    """Put facts on every line that is logged inside."""
    before = _FACTS.set({**_FACTS.get(), **_as_facts(facts)})
    try:
        yield
    finally:
        _FACTS.reset(before)


def _as_facts(facts: Mapping[str, object]) -> dict[str, object]:
    # As text once, instead of on each line by a JSON encoder that knows UUIDs and enums.
    return {name: value if isinstance(value, int) else str(value) for name, value in facts.items()}


class LineHandler(QueueHandler):
    """Formats a record in the thread that logs it, and queues the line for the thread that writes.

    Neither a slow stderr nor a blocked one holds up a thread that logs. A killed process may lose the lines
    of its last milliseconds; `flush`, which logging calls at an orderly exit, waits for them.
    """

    queue: SimpleQueue[str | threading.Event]

    def __init__(self, stream: TextIO) -> None:
        super().__init__(SimpleQueue())
        self.stream = stream
        self._writer: _LineWriter | None = None
        os.register_at_fork(after_in_child=self._forget_parent)

    def _forget_parent(self) -> None:
        # The child has no writer thread, and the parent writes the lines that were queued before the fork.
        self.queue, self._writer = SimpleQueue(), None

    def prepare(self, record: logging.LogRecord) -> str:
        """Return the line: facts belong to the thread that logs, so the writer could not format it."""
        return f"{self.format(record)}\n"

    def enqueue(self, record: Any) -> None:
        """Queue a line, under the handler's lock; drop it when too many wait."""
        if self._writer is None:
            # Started with the first line, since a process may set up logs and then fork.
            self._writer = _LineWriter(self)
            self._writer.start()
            # A process that multiprocessing forked, as granian's are, ends without logging's own exit hook.
            Finalize(None, self.flush, exitpriority=0)
        if self.queue.qsize() < MAX_WAITING:
            self.queue.put_nowait(record)
        else:
            self._writer.dropped += 1

    def flush(self) -> None:
        """Wait until the lines queued so far are written, PATIENCE seconds at most."""
        if self._writer:
            written = threading.Event()
            self.queue.put_nowait(written)
            written.wait(PATIENCE)


class _LineWriter(QueueListener):
    """Writes queued lines in batches; an Event among them is set once the lines before it are written."""

    def __init__(self, handler: LineHandler) -> None:
        super().__init__(handler.queue)
        self._lines, self._stream, self._format = handler.queue, handler.stream, handler.prepare
        self.dropped = self._reported = 0

    def handle(self, record: Any) -> None:
        """Write a line and all that wait behind it, then rest, so that the next batch is a larger one."""
        text, flushed = "", []
        for item in (record, *(self._lines.get_nowait() for _ in range(self._lines.qsize()))):
            if isinstance(item, threading.Event):
                flushed.append(item)
                continue
            # Processes share a pipe, and only up to PIPE_BUF bytes are written to it in one piece.
            if len(text) + len(item) > PIPE_BUF:
                self._write(text)
                text = ""
            text += item
        if dropped := self.dropped - self._reported:
            self._reported += dropped
            about_dropped = {"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"}
            about_dropped |= {"msg": "%d lines were dropped while stderr was blocked.", "args": (dropped,)}
            text += self._format(logging.makeLogRecord(about_dropped))
        self._write(text)
        for event in flushed:
            event.set()
        time.sleep(PAUSE)

    def _write(self, text: str) -> None:
        # Nobody can be told of a stderr that is closed.
        with suppress(OSError, ValueError):
            self._stream.write(text)
            self._stream.flush()


def line_formatter(form: Form = "auto") -> logging.Formatter:
    """Return the formatter of every line; `auto` is text where stderr is a terminal, and JSON elsewhere."""
    names = structlog.processors.EventRenamer("message", "_event")
    kind: type[_LineFormatter]
    shape: list[Processor]
    if form == "text" or (form == "auto" and sys.stderr.isatty()):
        console = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), event_key="message", timestamp_key="time", pad_event_to=0
        )
        kind, shape = _LineFormatter, [_on_one_line, names, console]
    else:
        kind, shape = _JsonLineFormatter, [names, _ordered, structlog.processors.JSONRenderer()]
    meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    return kind(foreign_pre_chain=_shared_processors(), processors=[meta, _failure, _shallow, *shape])


class _LineFormatter(structlog.stdlib.ProcessorFormatter):
    """Lines of the standard library's loggers and of structlog's, in one form."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a line; of an error that a library hands over it shows the type alone."""
        if record.name.partition(".")[0] not in OURS and record.args:
            # Other handlers get the same record.
            record = copy.copy(record)
            record.args = _without_errors(record.args)
        return super().format(record)


class _JsonLineFormatter(_LineFormatter):
    _encode = json.JSONEncoder(default=repr).encode

    def format(self, record: logging.LogRecord) -> str:
        """Fast path: a plain line of web's, as every request leaves one, without structlog's chain."""
        plain = isinstance(record.msg, str) and not (record.exc_info or record.stack_info)
        if not plain or record.name.partition(".")[0] != QUICK:
            return super().format(record)
        extra = {name: record.__dict__[name] for name in EXTRA if name in record.__dict__}
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_FACTS.get(),
            **extra,
        }
        return self._encode(line)


def _without_errors(arguments: Any) -> Any:
    """Return a message's arguments with the type of each error in its place."""
    if isinstance(arguments, dict):
        # Celery writes an error's text, and its traceback, into the named arguments.
        kept = {name: "-" if name in ("exc", "traceback") else value for name, value in arguments.items()}
        return dict(zip(kept, _without_errors(tuple(kept.values())), strict=True))
    return tuple(
        type(argument).__qualname__ if isinstance(argument, BaseException) else argument
        for argument in arguments
    )


def _shared_processors() -> list[Processor]:
    return [
        _facts,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(allow=EXTRA),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]


def _facts(_logger: WrappedLogger, _name: str, line: EventDict) -> EventDict:
    # structlog keeps the message under "event"; here that is an event's id, and both are renamed at the end.
    facts = {"_event" if name == "event" else name: value for name, value in _FACTS.get().items()}
    return {**facts, **line}


def _failure(_logger: WrappedLogger, _name: str, line: EventDict) -> EventDict:
    """Replace an error by the types and places of its chain: its text and its frames' values quote data."""
    found = line.pop("exc_info", None)
    if found is True:
        found = sys.exc_info()
    error = found[1] if isinstance(found, tuple) else found
    if not isinstance(error, BaseException):
        return line
    chain: dict[int, dict[str, object]] = {}
    # A chain of causes can contain a cycle.
    while error is not None and id(error) not in chain:
        kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
        places = [
            f"{frame.f_globals.get('__name__', '?')}:{number} {frame.f_code.co_name}"
            for frame, number in walk_tb(error.__traceback__)
        ]
        chain[id(error)] = {"type": kind, "at": places[-PLACES:]}
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    line["failure"] = list(chain.values())
    return line


def _shallow(_logger: WrappedLogger, _name: str, line: EventDict) -> EventDict:
    """Replace values too deep to be written: a line that a handler logs must not fail its attempt."""
    for name, value in line.items():
        try:
            check_depth(value)
        except NestedTooDeeplyError as error:
            line[name] = str(error)
    return line


def _ordered(_logger: WrappedLogger, _name: str, line: EventDict) -> EventDict:
    first = {name: line[name] for name in ("time", "level", "logger", "message")}
    return {**first, **line}


def _on_one_line(_logger: WrappedLogger, _name: str, line: EventDict) -> EventDict:
    if chain := line.pop("failure", None):
        line["failure"] = " from ".join(f"{one['type']} at {(one['at'] or ['nowhere'])[-1]}" for one in chain)
    # A type that a sender chose may hold line breaks, or a terminal's codes.
    characters = (one if one.isprintable() else ascii(one)[1:-1] for one in str(line["event"]))
    return {**line, "event": "".join(characters)}
