"""Spanish headings of the columns, for spreadsheets that people read."""

from collections.abc import Mapping

HEADINGS: Mapping[str, str] = {
    "event_id": "Movimiento",
    "org_id": "Id de organización",
    "number": "Número",
    "key_id": "Id de llave",
    "day": "Día",
    "month": "Mes",
    "admitted_at": "Recibido (UTC)",
    "charged_at": "Cobrado (UTC)",
    "model": "Modelo",
    "provider": "Proveedor",
    "upstream": "Modelo del proveedor",
    "size": "Tamaño",
    "quality": "Calidad",
    "region": "Región",
    "images_asked": "Imágenes pedidas",
    "quantity": "Imágenes",
    "variant": "Variante",
    "usd_per_image": "USD por imagen",
    "price_book": "Lista de precios",
    "markup": "Factor",
    "mxn_per_usd": "MXN por USD",
    "fx_month": "Mes del tipo de cambio",
    "fx_source": "Fuente del tipo de cambio",
    "unit_mxn": "Precio unitario MXN",
    "usd_measured": "USD medidos",
    "amount_mxn": "Importe MXN",
    "images": "Archivos",
    "kind": "Tipo",
    "order_id": "Pedido",
    "reason": "Motivo",
    "org_name": "Organización",
    "key_name": "Llave",
    "posted_month": "Mes contable",
    "end_user": "Usuario final",
    "safety_identifier": "Id de seguridad",
    "tags": "Etiquetas",
    "metadata": "Metadatos",
    "seal": "Sello",
    "end": "Final",
    "end_reason": "Motivo del final",
    "upstream_ids": "Ids del proveedor",
    "upstream_usd": "USD del proveedor",
}

MONTHS = (
    "enero",
    "febrero",
    "marzo",
    "abril",
    "mayo",
    "junio",
    "julio",
    "agosto",
    "septiembre",
    "octubre",
    "noviembre",
    "diciembre",
)


def month_name(month: str) -> str:
    """Write `"2026-11"` as `"noviembre de 2026"`."""
    return f"{MONTHS[int(month[5:]) - 1]} de {month[:4]}"
