"""One JSON line an event on standard output. No prompt, no key, no address of a customer's picture."""

import logging
import sys

import orjson
import structlog


def set_up_logs(level: str) -> None:
    """Structured lines from `level` (debug, info, warning, error) upwards, ours and the libraries' warnings alike."""
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=10)
            ),
            structlog.processors.JSONRenderer(serializer=orjson.dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.BytesLoggerFactory(sys.stdout.buffer),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(stream=sys.stdout, level=max(number, logging.WARNING), format=_LIBRARY_LINE, force=True)


_LIBRARY_LINE = '{"event":"library","level":"%(levelname)s","logger":"%(name)s","message":"%(funcName)s"}'
