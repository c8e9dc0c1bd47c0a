"""Log lines of every process: JSON, or text in a terminal. They hold facts, never an event's data."""

import copy
import json
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import FrameType, TracebackType
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from config.nesting import NestedTooDeeplyError, check_depth

Form = Literal["auto", "json", "text"]

CHATTY = (
    "celery.worker.strategy",
    "celery.app.trace",
    "kombu",
    "amqp",
    "alembic",
    "celery.worker.consumer.connection",
    # Both name addresses, and a query string is nobody's to read.
    "httpx",
    "httpcore",
)
OURS = frozenset({"config", "receiver", "worker", "firstseen"})
"""Packages whose own lines show the text of an error: a sentence of ours, without data."""

QUICK = "receiver"
"""The package whose plain lines are written at once; handlers' lines hold what structlog has bound."""

EXTRA = ("status", "ms", "send", "outcome", "verdicts")
"""What a line may add to its message. Celery adds its arguments and results to some of its own."""

PLACES = 12
"""Frames shown of an error, the innermost."""

TURNS, MANY = 4, 1000
"""Times that one thread writes for the others, and lines that may wait; then each waits for its turn."""

PATIENCE = 1.0
"""Seconds that a process which ends waits for the thread that writes."""


def set_up_logs(form: Form = "auto", level: str = "INFO") -> None:
    """Send every logger's lines, and Python's warnings, to stderr in one form."""
    handler = Stderr(sys.stderr)
    handler.setFormatter(line_formatter(form))
    logging.basicConfig(level=level, handlers=[handler])
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
    log = logging.getLogger(__name__)

    def uncaught(kind: type[BaseException], error: BaseException | None, _: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt | SystemExit):
            log.critical("Nothing caught this.", exc_info=error or kind())

    sys.excepthook = uncaught
    threading.excepthook = lambda seen: uncaught(seen.exc_type, seen.exc_value, None)
    sys.unraisablehook = lambda seen: uncaught(seen.exc_type, seen.exc_value, None)


def line_formatter(form: Form = "auto") -> logging.Formatter:
    """Return the formatter of every line; `auto` is text where stderr is a terminal, and JSON elsewhere."""
    readable = form == "text" or (form == "auto" and sys.stderr.isatty())
    kind, shape = (_Lines, _text()) if readable else (_JsonLines, _json())
    meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    return kind(foreign_pre_chain=_shared_processors(), processors=[meta, *shape])


_FACTS: ContextVar[Mapping[str, object]] = ContextVar("facts", default={})  # noqa: B039 - never written to


def bind(**facts: object) -> None:
    """Put facts on every line that this thread logs from now on."""
    _FACTS.set({**_FACTS.get(), **_as_facts(facts)})


def begin(**facts: object) -> None:
    """Forget this thread's facts, as it begins something else, and put these on its lines."""
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
    return {name: value if isinstance(value, int) else str(value) for name, value in facts.items()}


class _Lines(structlog.stdlib.ProcessorFormatter):
    """Lines of the standard library's loggers and of structlog's, in one form."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a line; of an error that a library hands over it shows the type alone."""
        if record.name.partition(".")[0] not in OURS and record.args:
            record = copy.copy(record)
            record.args = _without_errors(record)
        return super().format(record)


class _JsonLines(_Lines):
    def format(self, record: logging.LogRecord) -> str:
        """Write a plain line of web's at once: every request leaves one, and structlog's way is slow."""
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
        return _encode(line)


_encode = json.JSONEncoder(default=repr).encode


def _without_errors(record: logging.LogRecord) -> Any:
    if isinstance(record.args, dict):
        # Celery writes an error's text, and its traceback, into the named arguments.
        return {name: "-" if name in ("exc", "traceback") else _typed(v) for name, v in record.args.items()}
    return tuple(_typed(argument) for argument in record.args or ())


def _typed(argument: object) -> object:
    return type(argument).__qualname__ if isinstance(argument, BaseException) else argument


def _shared_processors() -> list[structlog.typing.Processor]:
    return [
        _about,
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(allow=EXTRA),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]


def _about(_logger: WrappedLogger, _name: str, line: EventDict) -> EventDict:
    # structlog keeps the message under "event"; here that is an event's id, and both are renamed at the end.
    facts = {"_event" if name == "event" else name: value for name, value in _FACTS.get().items()}
    return {**facts, **line}


def _json() -> list[structlog.typing.Processor]:
    names = structlog.processors.EventRenamer("message", "_event")
    return [_failed, _shallow, names, _ordered, structlog.processors.JSONRenderer()]


def _text() -> list[structlog.typing.Processor]:
    shape = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), event_key="message", timestamp_key="time", pad_event_to=0
    )
    return [_failed, _shallow, _flat, _visible, structlog.processors.EventRenamer("message", "_event"), shape]


def _failed(_logger: WrappedLogger, _name: str, line: EventDict) -> EventDict:
    """Tell of an error its types and places: its text, and the values in its frames, quote what came in."""
    found = line.pop("exc_info", None)
    if found is True:
        found = sys.exc_info()
    error = found[1] if isinstance(found, tuple) else found
    if isinstance(error, BaseException):
        line["failure"] = [{"type": _type(one), "at": list(_places(one))} for one in _chain(error)]
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


def _flat(_logger: WrappedLogger, _name: str, line: EventDict) -> EventDict:
    failures = line.pop("failure", [])
    if failures:
        line["failure"] = " from ".join(
            f"{one['type']} at {(one['at'] or ['nowhere'])[-1]}" for one in failures
        )
    return line


def _visible(_logger: WrappedLogger, _name: str, line: EventDict) -> EventDict:
    """Keep a message on its line: a type that somebody sends may hold line breaks, or words for terminals."""
    shown = (one if one.isprintable() else ascii(one)[1:-1] for one in str(line["event"]))
    return {**line, "event": "".join(shown)}


def _type(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def _places(error: BaseException) -> Iterable[str]:
    places, trace = [], error.__traceback__
    while trace is not None:
        places.append(_place(trace.tb_frame, trace.tb_lineno))
        trace = trace.tb_next
    return places[-PLACES:]


def _place(frame: FrameType, line: int) -> str:
    return f"{frame.f_globals.get('__name__', '?')}:{line} {frame.f_code.co_name}"


class Stderr(logging.StreamHandler[TextIO]):
    """Of threads that log at once, one writes the lines of all.

    A write lets another thread run, and coming back costs more than the line.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: deque[str] = deque()
        self._writing, self._crowded = threading.Lock(), False
        os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        # A thread that was writing at the fork writes in the parent only.
        self._lines, self._writing, self._crowded = deque(), threading.Lock(), False

    def createLock(self) -> None:  # noqa: N802 - logging's own name
        """Create none: threads would queue for it."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Write a record that the filters let through; the inherited method takes the lock."""
        passed: bool | logging.LogRecord = self.filter(record)
        if passed:
            self.emit(passed if isinstance(passed, logging.LogRecord) else record)
        return bool(passed)

    def flush(self) -> None:
        """Write what is left as the process ends; wait for the lock only PATIENCE seconds."""
        if self._writing.acquire(timeout=PATIENCE):
            try:
                self.stream.write("".join(self._taken()))
                self.stream.flush()
            finally:
                self._writing.release()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or leave it to the thread that is writing."""
        try:
            self._lines.append(f"{self.format(record)}\n")
            self._write()
        except RecursionError:
            raise
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(record)

    def _write(self) -> None:
        # Looked at again after each turn: a line may have come just before the lock was free.
        turns = 0
        while self._lines and self._writing.acquire(blocking=self._crowded or len(self._lines) > MANY):
            try:
                self.stream.write("".join(self._taken()))
            finally:
                self._writing.release()
            turns += 1
            # The others wait for their turn now, or this thread would write for them as long as they log.
            self._crowded = turns >= TURNS
        if turns:
            self._crowded = False

    def _taken(self) -> Iterator[str]:
        while self._lines:
            yield self._lines.popleft()
