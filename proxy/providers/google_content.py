"""Google's `:generateContent`: one picture per call, the last of the reply that is no thought, charged by its tokens.

A size is sent as a ratio, `16:9`, and perhaps a resolution after it, `16:9 2K`. `always` is merged into the
`generationConfig`.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import httpx2

from config.tokens import TokenUsage, token_count
from proxy.media.inline import JsonPictures
from proxy.outcomes import Failure, Outcome
from proxy.ports import Call, Picture
from proxy.upstream import Refusal, note_id, note_usage, post_for_last_picture, short

PARTS, DATA = "candidates.0.content.parts", "inlineData.data"

SIGNATURE = "thoughtSignature"
"""What a client sends back in a conversation. Beside a picture it may be as large as the picture; we hold none."""

_DELIVERED = (None, "STOP")
_BLOCKED = ("SAFETY", "PROHIBITED", "BLOCKLIST", "RECITATION", "SPII")
"""Parts of the reasons for which the model was stopped: `IMAGE_SAFETY`, `PROHIBITED_CONTENT`, …"""


async def generate_content(
    client: httpx2.AsyncClient,
    url: str,
    headers: Mapping[str, str],
    call: Call,
    document_bytes: int,
    refusal: Refusal,
) -> AsyncGenerator[Picture]:
    """Yield the reply's pictures, drafts and thoughts among them, while it arrives. Raises Failure."""
    document = JsonPictures(PARTS, DATA, document_bytes, SIGNATURE)

    def verdict(rest: dict[str, Any], pictured: bool) -> None:
        _read(call, rest)
        _judge(rest, pictured)

    pictures = post_for_last_picture(client, url, headers, _body(call), call, document, refusal, verdict)
    async with aclosing(pictures):
        async for picture in pictures:
            yield picture


def _body(call: Call) -> dict[str, Any]:
    order = call.order
    ratio, _, resolution = order.model.sizes[order.size].partition(" ")
    image = {"aspectRatio": ratio} | ({"imageSize": resolution} if resolution else {})
    return {
        "contents": [{"role": "user", "parts": [{"text": order.prompt}]}],
        "generationConfig": {"responseModalities": ["IMAGE"], "imageConfig": image, **order.model.always},
    }


def _read(call: Call, rest: dict[str, Any]) -> None:
    """Read what the reply says besides its pictures; its usage is passed on in OpenAI's form."""
    report = call.report
    note_id(report, rest.get("responseId"))
    report.served = short(rest.get("modelVersion"))
    used = _used(rest.get("usageMetadata"))
    if used is None:
        return
    report.usd = call.order.model.usd_of(used)
    text_in, image_in = used.text_input + used.cached_text_input, used.image_input + used.cached_image_input
    note_usage(
        report,
        {
            "input_tokens": text_in + image_in,
            "input_tokens_details": {"text_tokens": text_in, "image_tokens": image_in},
            "output_tokens": used.image_output + used.text_output,
            "output_tokens_details": {"image_tokens": used.image_output, "text_tokens": used.text_output},
            "total_tokens": text_in + image_in + used.image_output + used.text_output,
        },
    )


def _used(usage: Any) -> TokenUsage | None:
    """Sort a usage by what each kind costs; None if it has no sums. Without details the output is a picture."""
    if not isinstance(usage, dict):
        return None
    tokens_in, tokens_out = token_count(usage.get("promptTokenCount")), token_count(usage.get("candidatesTokenCount"))
    if tokens_in is None or tokens_out is None:
        return None
    image_in = min(_of_images(usage.get("promptTokensDetails")) or 0, tokens_in)
    cached = min(token_count(usage.get("cachedContentTokenCount")) or 0, tokens_in)
    cached_image = min(_of_images(usage.get("cacheTokensDetails")) or 0, cached, image_in)
    cached_text = min(cached - cached_image, tokens_in - image_in)
    image_out = _of_images(usage.get("candidatesTokensDetails"))
    image_out = tokens_out if image_out is None else min(image_out, tokens_out)
    return TokenUsage(
        text_input=tokens_in - image_in - cached_text,
        cached_text_input=cached_text,
        image_input=image_in - cached_image,
        cached_image_input=cached_image,
        image_output=image_out,
        text_output=tokens_out - image_out + (token_count(usage.get("thoughtsTokenCount")) or 0),
    )


def _of_images(details: Any) -> int | None:
    """Sum up the tokens of images; None if there are no details."""
    if not isinstance(details, list):
        return None
    rows = [row for row in details if isinstance(row, dict) and row.get("modality") == "IMAGE"]
    return sum(token_count(row.get("tokenCount")) or 0 for row in rows)


def _judge(rest: dict[str, Any], pictured: bool) -> None:
    """Raise Failure if the reply was blocked or has no picture. A draft of what was blocked at its end is not ours."""
    feedback = rest.get("promptFeedback")
    if isinstance(feedback, dict) and feedback.get("blockReason"):
        raise Failure(Outcome.CONTENT_POLICY, short(feedback["blockReason"]) or "")
    candidates = rest.get("candidates")
    if not isinstance(candidates, list) or not candidates or not isinstance(candidates[0], dict):
        raise Failure(Outcome.BAD_REPLY, "no candidates")
    reason = candidates[0].get("finishReason")
    if isinstance(reason, str) and any(word in reason for word in _BLOCKED):
        raise Failure(Outcome.CONTENT_POLICY, short(reason) or "")
    if not pictured or reason not in _DELIVERED:
        raise Failure(Outcome.NO_IMAGE, short(reason) or "")
