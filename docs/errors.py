"""Prints `docs/errors.md` from the tables in the code: `.venv/bin/python -m docs.errors`. A test compares the two."""

import sys
from collections.abc import Sequence
from pathlib import Path

from metering.events import UNKNOWN
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
    Kind.NOT_ALLOWED: "el rol de administración no permite esto",
    Kind.MODEL_NOT_FOUND: "ese modelo no existe",
    Kind.NO_GENERATION: "la organización no tiene esa generación",
    Kind.NOT_FOUND: "no hay nada en esta dirección",
    Kind.METHOD: "la dirección no acepta este método",
    Kind.TOO_LARGE: "el cuerpo es demasiado grande",
    Kind.KEY_REUSED: "la misma clave de idempotencia con otro pedido",
    Kind.RATE_LIMIT: "demasiadas peticiones o imágenes por minuto, o imágenes a la vez",
    Kind.QUOTA: "las imágenes del día o del mes están agotadas",
    Kind.INTERNAL: "una falla del gateway",
    Kind.PROVIDER: "falló el proveedor del modelo o el almacenamiento",
    Kind.UNAVAILABLE: "el gateway no puede decidir en este momento",
    Kind.BUSY: "el gateway ya hace tantas imágenes como puede, o la organización tiene su parte y otras esperan",
    Kind.CHARGED: "el pedido se cobró y su respuesta se perdió; sus imágenes se obtienen por su id",
    Kind.FX_MISSING: "este mes todavía no tiene tipo de cambio",
    Kind.DEADLINE: "ninguna imagen estuvo lista a tiempo",
    Kind.END_UNKNOWN: "todavía no se sabe si el pedido se cobró; su id lo dice",
}

SUCEDIDO = {
    Outcome.CONTENT_POLICY: "El proveedor rechazó el prompt o sus imágenes: política de contenido.",
    Outcome.REFUSED_CONNECTION: "No se puede llegar al proveedor del modelo.",
    Outcome.RATE_LIMITED: "El proveedor del modelo no acepta más trabajo por ahora.",
    Outcome.BUSY: "El proveedor del modelo está demasiado ocupado para aceptar el trabajo.",
    Outcome.OVERLOADED: "El proveedor del modelo no está disponible.",
    Outcome.NO_ANSWER: "El proveedor del modelo cortó sin dar un resultado.",
    Outcome.REJECTED: "El proveedor del modelo rechazó la petición.",
    Outcome.NOT_AUTHORISED: "El acceso del gateway al proveedor del modelo no está en orden.",
    Outcome.RETIRED: "El proveedor ya no ofrece este modelo.",
    Outcome.BAD_REPLY: "El proveedor del modelo envió algo que no es un resultado.",
    Outcome.NO_IMAGE: "El proveedor del modelo no entregó ninguna imagen.",
    Outcome.BAD_IMAGE: "El proveedor del modelo entregó algo que no es una imagen.",
    Outcome.FETCH_FAILED: "No se pudo descargar la imagen terminada del proveedor.",
    Outcome.STORE_FAILED: "No se pudo guardar la imagen terminada.",
    Outcome.DEADLINE: "Ninguna imagen estuvo lista a tiempo; no se cobró nada.",
    Outcome.FAULT: "El gateway falló mientras se hacía la imagen; no se cobró nada.",
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

`x-should-retry` says whether asking again makes sense; the official SDKs obey it. Beside it stand `retry-after` and
`retry-after-ms` where the gateway knows how long to wait; a wait above {LONGEST_RETRY_S:.0f} s goes with
`x-should-retry: false`, because the SDKs do not wait that long.

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

KINDS = ("status", "`type`", "`code`", "retry", "when", "cuándo")
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
        (str(row.status), f"`{row.type}`", f"`{row.code}`", _yes(row.retry), row.when, CUANDO[kind])
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
            rule.message,
            SUCEDIDO[outcome],
        )
        for outcome, rule in ((outcome, outcome.value) for outcome in Outcome)
    ]
    return "\n".join([HEAD, _table(KINDS, kinds), MIDDLE, _table(OUTCOMES, outcomes)]) + "\n"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"written: {PAGE.name}\n")
