"""Logs: one JSON line for each event. No prompt, no key, no URL of a customer's picture."""

import logging
import re
from functools import partial
from typing import TextIO

import orjson
import structlog
from structlog.typing import EventDict, Processor

_KEY = re.compile(r"ghub_sk_\w+", re.ASCII)
_KEY_IN_BYTES = re.compile(_KEY.pattern.encode())
_HIDDEN = "ghub_sk_[hidden]"
_LIBRARY_LINE = '{"event":"library","level":"%(levelname)s","logger":"%(name)s","at":"%(funcName)s:%(lineno)d"}'


def set_up_logs(level: str, stream: TextIO, region: str | None = None) -> None:
    """Log structured lines from `level` (debug, info, warning, error) upwards, each with the `region` if there is one.

    A library's warning is logged only by its place: its text may contain a URL or a body.
    """
    place: list[Processor] = [] if region is None else [partial(_with_region, region)]
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            *place,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=10)
            ),
            structlog.processors.JSONRenderer(serializer=orjson.dumps),
            _without_keys,  # type: ignore[list-item]  # after the renderer there is a line, no event
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.BytesLoggerFactory(stream.buffer),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_PlaceOnly(_LIBRARY_LINE))
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)


def without_keys(text: str) -> str:
    """Hide keys, as every line of the log does, in what is told elsewhere."""
    return _KEY.sub(_HIDDEN, text) if "ghub_sk_" in text else text


class _PlaceOnly(logging.Formatter):
    """Place of a library's warning, without its text and traceback, which may quote a request."""

    def format(self, record: logging.LogRecord) -> str:
        record.exc_info = record.exc_text = record.stack_info = None
        return super().format(record)


def _with_region(region: str, logger: object, method: str, line: EventDict) -> EventDict:
    line["region"] = region
    return line


def _without_keys(logger: object, method: str, line: bytes) -> bytes:
    """Hide keys. Nothing here logs a key, but another program's text may contain one."""
    return _KEY_IN_BYTES.sub(_HIDDEN.encode(), line) if b"ghub_sk_" in line else line
