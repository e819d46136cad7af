"""Words of a statement, in English and in Spanish. They are for people who have never seen the API."""

from metering.ports import CreditType
from proxy.messages import Text

TITLE = Text("Account statement", "Estado de cuenta")
PERIOD = Text("1 to {last}, Mexico City time", "Del 1 al {last}, hora de la Ciudad de México")
ACCOUNT = Text("Account number {org_id}", "Número de cuenta {org_id}")
PROVISIONAL = Text("Provisional: the month is not closed.", "Provisional: el mes no está cerrado.")
MAY_CHANGE = Text(
    "Orders and payments may still be added, and the amounts may change.",
    "Todavía pueden agregarse pedidos y pagos, y los importes pueden cambiar.",
)
CLOSED = Text("Month closed on {day}. This statement does not change any more.",
              "Mes cerrado el {day}. Este estado de cuenta ya no cambia.")  # fmt: skip

SUMMARY = Text("Summary", "Resumen")
CONCEPT = Text("Concept", "Concepto")
OPENING = Text("Opening balance", "Saldo inicial")
CLOSING = Text("Closing balance", "Saldo final")
SO_FAR = Text("Balance so far", "Saldo hasta ahora")
CHARGES = Text("Charges for images", "Cargos por imágenes")
AMOUNT = Text("Amount (MXN)", "Importe (MXN)")
USED = Text("Orders charged: {orders}. Images delivered: {images}.",
            "Pedidos cobrados: {orders}. Imágenes entregadas: {images}.")  # fmt: skip
USED_NOTHING = Text("Nothing was charged in this month.", "En este mes no hubo cargos.")

KINDS: dict[CreditType, Text] = {
    "recharge": Text("Recharges", "Recargas"),
    "bonus": Text("Bonuses", "Bonificaciones"),
    "refund": Text("Refunds", "Reembolsos"),
    "adjustment": Text("Adjustments", "Ajustes"),
    "chargeback": Text("Chargebacks", "Contracargos"),
}
KIND: dict[CreditType, Text] = {
    "recharge": Text("Recharge", "Recarga"),
    "bonus": Text("Bonus", "Bonificación"),
    "refund": Text("Refund", "Reembolso"),
    "adjustment": Text("Adjustment", "Ajuste"),
    "chargeback": Text("Chargeback", "Contracargo"),
}

BY_DAY = Text("Charges by day", "Cargos por día")
CHART_TITLE = Text("Cost of each day", "Costo de cada día")
CHART = Text(
    "Bars for the cost of each day of {month}. The most expensive day is {day} with {amount} MXN.",
    "Barras con el costo de cada día de {month}. El día más caro es el {day}, con {amount} MXN.",
)
CHART_LATE = Text(
    "The chart shows the orders of this month, without the charges of earlier months.",
    "La gráfica muestra los pedidos de este mes, sin los cargos de meses anteriores.",
)
BY_KEY = Text("Charges by API key", "Cargos por clave de API")
BY_MODEL = Text("Charges by model", "Cargos por modelo")
BY_TAG = Text("Charges by tag", "Cargos por etiqueta")
DAY = Text("Day", "Día")
KEY = Text("API key", "Clave de API")
MODEL = Text("Model", "Modelo")
TAG = Text("Tag", "Etiqueta")
ORDERS = Text("Orders", "Pedidos")
IMAGES = Text("Images", "Imágenes")
TOTAL = Text("Total", "Total")
OTHERS = Text("{count} others", "Otros {count}")
OTHER_TAGS = Text(
    "{count} further tags, which cost less, are not listed.",
    "Hay {count} etiquetas más, de menor costo, que no se listan.",
)
UNTAGGED = Text("Without a tag", "Sin etiqueta")
TAGS_OVERLAP = Text(
    "An order with several tags counts for each of them, so these amounts do not add up to the total.",
    "Un pedido con varias etiquetas cuenta en cada una; por eso estos importes no suman el total.",
)
LATE = Text("Charges of earlier months", "Cargos de meses anteriores")
LATE_WHY = Text(
    "Orders of months that were already closed when they were booked, at the prices of their own month.",
    "Pedidos de meses que ya estaban cerrados cuando se registraron, a los precios de su propio mes.",
)
TAGS_LATE = Text(
    "Charges of earlier months are not in this table.", "Los cargos de meses anteriores no están en esta tabla."
)
MONTH = Text("Month", "Mes")

MOVEMENTS = Text("Payments and credits", "Pagos y abonos")
DATE = Text("Date", "Fecha")
INTO_BALANCE = Text("To balance (MXN)", "Al saldo (MXN)")
REFUND_OF = Text("Of order {order}", "Del pedido {order}")
CHARGEBACK_OF = Text("Of recharge {recharge}", "De la recarga {recharge}")
NO_MOVEMENTS = Text("None in this month.", "Ninguno en este mes.")
EARLIER_MOVEMENTS = Text(
    "{count} earlier ones of this month are not listed; they are in the sums.",
    "No se listan otros {count} anteriores de este mes; están incluidos en las sumas.",
)

IVA = Text("IVA on recharges", "IVA de las recargas")
IVA_RATE = Text("IVA rate", "Tasa de IVA")
BASE = Text("Base (MXN)", "Base (MXN)")
IVA_AMOUNT = Text("IVA (MXN)", "IVA (MXN)")
PAID = Text("Total paid (MXN)", "Total pagado (MXN)")
IVA_WHY = Text(
    "IVA is paid with each recharge and does not enter the balance. Charges for images are shown without IVA.",
    "El IVA se paga con cada recarga y no entra al saldo. Los cargos por imágenes se muestran sin IVA.",
)
NO_IVA = Text(
    "There were no recharges in this month, and so no IVA.", "En este mes no hubo recargas ni, por tanto, IVA."
)

RATE = Text("Exchange rate", "Tipo de cambio")
RATE_WHY = Text(
    "Prices are listed in US dollars, and orders are charged at the rate of their month, fixed before it begins. Until"
    " a month has its own, that of the month before holds.",
    "Los precios de lista están en dólares, y los pedidos se cobran al tipo de cambio de su mes, fijado antes de que"
    " empiece. Mientras un mes no tiene el suyo, vale el del mes anterior.",
)
PER_USD = Text("MXN per USD", "MXN por USD")
SOURCE = Text("Source", "Fuente")
PRINTED = Text("Value as printed", "Valor publicado")
NO_RATE = Text("There is no rate for this month yet.", "Este mes todavía no tiene tipo de cambio.")

EXACT = Text(
    "Amounts are in Mexican pesos (MXN) and exact, with up to six decimals. Base, IVA and total of each recharge are"
    " rounded to a cent.",
    "Los importes están en pesos mexicanos (MXN) y son exactos, hasta seis decimales. La base, el IVA y el total de"
    " cada recarga se redondean al centavo.",
)
EQUATION = Text(
    "Opening balance + payments and credits − charges = closing balance.",
    "Saldo inicial + pagos y abonos − cargos = saldo final.",
)
