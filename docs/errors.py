"""Prints `docs/errors.md` from the tables in the code: `.venv/bin/python -m docs.errors`. A test compares the two."""

import sys
from collections.abc import Sequence
from pathlib import Path

from metering.events import UNKNOWN
from metering.wallet.wallet import RECENT_S
from proxy.errors import LONGEST_RETRY_S, Kind
from proxy.outcomes import Outcome

PAGE = Path(__file__).with_suffix(".md")

CUANDO = {
    Kind.INVALID_REQUEST: "el cuerpo de la petición es incorrecto",
    Kind.CONTENT_POLICY: "el proveedor rechazó el prompt o todas las imágenes",
    Kind.MISSING_KEY: "no se envió ninguna clave de API",
    Kind.INVALID_KEY: "la clave de API no existe",
    Kind.KEY_REVOKED: "la clave de API fue revocada",
    Kind.KEY_EXPIRED: "la clave de API expiró",
    Kind.INVALID_TOKEN: "el token de administración falta, es incorrecto o expiró",
    Kind.BALANCE: "el saldo no alcanza para el pedido",
    Kind.BUDGET: "el presupuesto del mes no alcanza para el pedido",
    Kind.MODEL_NOT_ALLOWED: "la clave de API no puede usar este modelo",
    Kind.ORIGIN_NOT_ALLOWED: "la clave de API no puede usarse desde páginas de este origen",
    Kind.SUSPENDED: "la organización está suspendida: no se aceptan sus pedidos",
    Kind.NOT_ALLOWED: "el rol o los derechos del token, o la clave de API, no permiten esto",
    Kind.SECOND_PERSON: "la persona del token hizo la otra mitad de esto, o usó otro derecho de este mes",
    Kind.MODEL_NOT_FOUND: "ese modelo no existe",
    Kind.NO_GENERATION: "la organización no tiene esa generación",
    Kind.NOT_FOUND: "no hay nada en esta dirección",
    Kind.METHOD: "la dirección no acepta este método",
    Kind.CANCELLED: "el pedido se canceló; no se cobró nada",
    Kind.NOT_CANCELLED: "el pedido ya terminó, o ya no puede detenerse",
    Kind.NOT_ACCEPTABLE: "este gateway no puede responder en la forma solicitada",
    Kind.TOO_LARGE: "el cuerpo es demasiado grande",
    Kind.ENCODING: "el cuerpo está comprimido de una forma que no se acepta",
    Kind.KEY_REUSED: "la misma clave de idempotencia con otro pedido",
    Kind.RATE_LIMIT: "demasiadas peticiones o imágenes por minuto, o imágenes a la vez",
    Kind.QUOTA: "las imágenes del día o del mes están agotadas",
    Kind.INTERNAL: "una falla del gateway",
    Kind.PROVIDER: "falló el proveedor del modelo o el almacenamiento",
    Kind.OUTCOME_UNKNOWN: "murió el gateway que hacía el pedido: no se sabe qué hizo su proveedor; no se cobró nada",
    Kind.UNAVAILABLE: "el gateway no puede decidir en este momento",
    Kind.BUSY: "el gateway ya hace tantas imágenes como puede, o la organización tiene su parte y otras esperan",
    Kind.CHARGED: "el pedido se cobró y su respuesta se perdió; sus imágenes se obtienen por su id",
    Kind.FX_MISSING: "este mes todavía no tiene tipo de cambio",
    Kind.DEADLINE: "ninguna imagen estuvo lista a tiempo",
    Kind.END_UNKNOWN: "todavía no se sabe si el pedido se cobró; su id lo dice",
}

HEAD = f"""\
<!-- Printed from the code by `.venv/bin/python -m docs.errors`; changes belong there. -->

# Errors

Every error has OpenAI's envelope, and `request_id` in it:

```json
{{"error": {{"message": "…", "type": "…", "code": "…", "param": null, "request_id": "req_…"}}}}
```

An error is not charged, but for two that say so: `charged_fetch_by_id` (the order is charged, and its images are at
`GET /v1/images/generations/{{id}}`) and `end_unknown` (that address tells it within minutes).

`message` is Spanish where `Accept-Language` prefers it (`es`, `es-MX,en;q=0.5`), else English; `content-language` says
which. `code` and `type` are the same in both. `/admin/v1` and `/finance/v1` speak English.
*En español*: envíe `Accept-Language: es` y los mensajes llegan en español, con sus cifras.

`x-should-retry` says whether asking again makes sense; the official SDKs obey it, and
[Vercel's AI SDK](#vercels-ai-sdk) does not. Beside it stand `retry-after` and `retry-after-ms` where the gateway knows
how long to wait; a wait above {LONGEST_RETRY_S:.0f} s goes with `x-should-retry: false`, because the SDKs do not wait
that long.

## What a customer may see
"""

MIDDLE = """
In the column *retry*, **yes** is the rule; where the upstream may have begun to work (the next table), a single answer
still says `false`.

## What can become of an upstream call

An order is charged for the images that were stored, and for nothing else. If at least one was stored, the answer is a
200 with those; an order without any ends as one of the other rows, and if its images failed in different ways, as one
in which the upstream may have begun. The outcome is the reason in the metering event. *Unknown upstream*: bytes were
sent and no definite answer came; the customer is not charged, and the call is never made again.
"""

AI_SDK_TRIES = 3

AI_SDK = f"""
## Vercel's AI SDK

It does not read `x-should-retry`, and counts no tries. It goes by the status alone: {AI_SDK_TRIES} tries in all at 408,
409, 429 and 5xx, and after a lost connection. Between them it waits 2 and 4 seconds, or what `retry-after-ms` or
`retry-after` says if that is within 60 seconds. An abort by your own `abortSignal` is not tried again. *AI SDK tries*
in the first table is how often it sends an order that is answered with this error each time.
"""

AI_SDK_END = """
An order is the same where all of its fields are, `user` and `safety_identifier` among them, and its API key. One with
an `Idempotency-Key` is found by that alone, for 24 hours: send one (`headers: { 'Idempotency-Key': … }`) where an order
must never be paid for twice. `maxRetries: 0` leaves trying again to you.
"""

MONEY = ("after", "the next try is", "and costs", "en español")
MONEYS = [
    (
        "a lost connection, or giving up and ordering the same again",
        "the same order, joined while it is made: once, within"
        f" {RECENT_S / 60:.0f} minutes after the client was seen to leave",
        "0.00, `idempotent-replayed: true`",
        "el mismo pedido, sin otro cargo",
    ),
    ("503 `charged_fetch_by_id`", "the same order", "0.00", "el mismo pedido, sin otro cargo"),
    (
        "500, 502, 503 or 504 that is not charged",
        "a new order",
        "what it delivers; the one before was not charged",
        "un pedido nuevo; el anterior no se cobró",
    ),
    (
        "504 `end_unknown`",
        "a new order",
        "what it delivers; the one before may be charged, too",
        "un pedido nuevo; el anterior puede cobrarse también",
    ),
    (
        "429 `rate_limit_exceeded`",
        "a new order, after the wait that the answer names",
        "what it delivers",
        "un pedido nuevo, después de la espera",
    ),
    ("429 `quota_exceeded`, 503 `fx_rate_missing`", "refused again", "nothing", "rechazado otra vez, sin cargo"),
]

KINDS = ("status", "`type`", "`code`", "retry", "AI SDK tries", "when", "cuándo")
OUTCOMES = (
    "outcome",
    "end",
    "tried again by us",
    "status",
    "`code`",
    "upstream may have accepted it",
    "retry",
    "message",
    "en español",
)


def page() -> str:
    """The whole of `docs/errors.md`. A row of the code without a translation is a KeyError here."""
    kinds = [
        (
            str(row.status),
            f"`{row.type}`",
            f"`{row.code}`",
            _yes(row.retry),
            str(ai_sdk_tries(kind)),
            row.when,
            CUANDO[kind],
        )
        for kind, row in ((kind, kind.value) for kind in Kind)
    ]
    outcomes = [("an image was stored", "charge", "no", "200", "–", "yes", "–", "–", "se guardó una imagen")] + [
        (
            f"`{outcome.reason}`",
            "void, unknown upstream" if outcome.reason in UNKNOWN else "void",
            _yes(rule.again),
            str(rule.error.value.status),
            f"`{rule.error.value.code}`",
            _yes(rule.accepted),
            _yes(rule.error.value.retry and not rule.accepted),
            str(rule.message),
            rule.message.es,
        )
        for outcome, rule in ((outcome, outcome.value) for outcome in Outcome)
    ]
    parts = [HEAD, _table(KINDS, kinds), MIDDLE, _table(OUTCOMES, outcomes), AI_SDK, _table(MONEY, MONEYS), AI_SDK_END]
    return "\n".join(parts)


def ai_sdk_tries(kind: Kind) -> int:
    """How often Vercel's AI SDK sends an order that goes on to be answered with this error."""
    return AI_SDK_TRIES if kind.value.status in (408, 409, 429) or kind.value.status >= 500 else 1


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"written: {PAGE.name}\n")
