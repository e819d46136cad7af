"""What the span of an upstream call says, by OpenTelemetry's conventions for generative AI as far as there are any."""

import re
from collections.abc import Mapping
from typing import Any

from metering.tracing import Notes
from proxy.outcomes import Failure
from proxy.ports import Call

OPERATION = "image_generation"

_MODEL = re.compile(r"[\w./:-]{1,128}", re.ASCII)
"""Name of a model. What an upstream says that it has served is left out if it looks like anything else."""

_TOKENS = ("input_tokens", "output_tokens")


def note_call(span: Notes, call: Call, tries: int) -> None:
    """Note what is ordered of an upstream. `tries` counts from 1."""
    if not span.recorded:
        return
    span.set("gen_ai.operation.name", OPERATION)
    span.set("gen_ai.output.type", "image")
    span.set("gen_ai.provider.name", call.order.model.provider)
    span.set("gen_ai.request.model", call.order.model.upstream)
    span.set("gen_ai.request.choice.count", call.images)
    span.set("ghub.model", call.order.model_id)
    span.set("ghub.try", tries)


def note_answer(span: Notes, call: Call, failure: Failure | None) -> None:
    """Note what became of a call. Of an upstream's words none is noted but a model's name."""
    if not span.recorded:
        return
    report = call.report
    if report.served is not None and _MODEL.fullmatch(report.served):
        span.set("gen_ai.response.model", report.served)
    for name, tokens in _usage(report.usage or {}).items():
        span.set(f"gen_ai.usage.{name}", tokens)
    if failure is not None:
        span.fail(failure.span_code)


def _usage(told: Mapping[str, Any]) -> dict[str, int]:
    return {name: told[name] for name in _TOKENS if type(told.get(name)) is int}
