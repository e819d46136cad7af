"""Messages for customers, in English and in Spanish: one table of whole sentences with their numbers in place.
The admin and finance APIs are not in it: like the commands whose sentences they return, they use English.
"""

from typing import Literal, get_args

Language = Literal["en", "es"]

LANGUAGES: tuple[Language, ...] = get_args(Language)
"""English is the default."""


class Text(str):
    """A sentence: itself in English, and `es` in Spanish. `{name}` stands for a value, which may also be a text."""

    __slots__ = ("es",)
    es: str

    def __new__(cls, english: str, spanish: str) -> "Text":
        """Require both languages, so that the type checker finds a missing one."""
        made = super().__new__(cls, english)
        made.es = spanish
        return made

    def of(self, **values: object) -> "Text":
        """Insert values. `{name}` inside a value is not replaced again."""
        spanish = {name: value.es if isinstance(value, Text) else value for name, value in values.items()}
        return Text(self.format(**values), self.es.format(**spanish))

    def then(self, sentence: "Text") -> "Text":
        """Add another sentence after this one."""
        return Text(f"{self} {sentence}", f"{self.es} {sentence.es}")


def translated(message: str, wanted: Language) -> tuple[str, Language]:
    """Choose a message's text in the `wanted` language, or English if there is no other; also returns its language."""
    return (message.es, "es") if wanted == "es" and isinstance(message, Text) else (message, "en")


# --- the key ----------------------------------------------------------------------------------------------------------

NO_KEY = Text(
    "Send your API key as `Authorization: Bearer ghub_sk_…`.",
    "Envíe su clave de API así: `Authorization: Bearer ghub_sk_…`.",
)
UNKNOWN_KEY = Text("This API key is not known.", "Esta clave de API no existe.")
REVOKED = Text("This API key was revoked.", "Esta clave de API fue revocada.")
EXPIRED = Text("This API key has expired.", "Esta clave de API expiró.")
ORIGIN = Text(
    "This API key may not be used by web pages from {origin}. Call from a server, where a secret key belongs, or have"
    " the origin named when a key is created.",
    "Esta clave de API no puede usarse en páginas web de {origin}. Llame desde un servidor, que es donde va una clave"
    " secreta, o pida que se nombre el origen al crear una clave.",
)
SUSPENDED = Text(
    "This organisation is suspended: orders are refused, and what was delivered can still be read.",
    "Esta organización está suspendida: no se aceptan pedidos, y lo entregado todavía puede consultarse.",
)
MODEL_NOT_ALLOWED = Text("This API key may not use `{model}`.", "Esta clave de API no puede usar `{model}`.")

# --- the address and the body -----------------------------------------------------------------------------------------

NOTHING_HERE = Text("There is nothing at this address.", "No hay nada en esta dirección.")
DID_YOU_MEAN = Text("Did you mean `{it}`?", "¿Quiso decir `{it}`?")
BASE_URL = Text(
    "The API's base URL ends in `/v1`, and `GET /openapi.json` describes what is there.",
    "La URL base de la API termina en `/v1`, y `GET /openapi.json` describe lo que hay.",
)
IMAGES_ONLY = Text(
    "This gateway makes images only, at `POST /v1/images/generations`.",
    "Este gateway solo genera imágenes, en `POST /v1/images/generations`.",
)
NO_EDITS = Text(
    "Image edits are not offered; `POST /v1/images/generations` makes images from a prompt.",
    "La edición de imágenes no se ofrece; `POST /v1/images/generations` genera imágenes a partir de un prompt.",
)
NO_VARIATIONS = Text(
    "Image variations are not offered; `POST /v1/images/generations` makes images from a prompt.",
    "Las variaciones de imágenes no se ofrecen; `POST /v1/images/generations` genera imágenes a partir de un prompt.",
)
METHODS = Text("This address takes {allowed} only.", "Esta dirección solo acepta {allowed}.")
OTHER_METHODS = Text("other methods", "otros métodos")
BODY_TOO_LARGE = Text("The body is larger than {most} bytes.", "El cuerpo tiene más de {most} bytes.")
UNPACKED_TOO_LARGE = Text(
    "The body is larger than {most} bytes when it is unpacked.",
    "El cuerpo tiene más de {most} bytes una vez descomprimido.",
)
BODY_DAMAGED = Text(
    "The body is not what `Content-Encoding: {encoding}` says: it cannot be unpacked.",
    "El cuerpo no es lo que dice `Content-Encoding: {encoding}`: no se puede descomprimir.",
)
ENCODING = Text(
    "`Content-Encoding: {encoding}` is not taken; there are {known}.",
    "No se acepta `Content-Encoding: {encoding}`; hay {known}.",
)
BODY_LATE = Text("The body did not arrive within {seconds:g} seconds.", "El cuerpo no llegó en {seconds:g} segundos.")
BODY_BROKE_OFF = Text("The body broke off.", "El cuerpo llegó incompleto.")
KEY_LENGTH = Text(
    "`Idempotency-Key` has {count} characters; it must have from 1 to {most}.",
    "`Idempotency-Key` tiene {count} caracteres; debe tener de 1 a {most}.",
)
KEY_REUSED = Text(
    "This `Idempotency-Key` belongs to another order of the last 24 hours. Send a new key.",
    "Esta `Idempotency-Key` pertenece a otro pedido de las últimas 24 horas. Envíe una nueva.",
)

# --- an order's fields ------------------------------------------------------------------------------------------------

NOT_JSON = Text("The body is not valid JSON.", "El cuerpo no es JSON válido.")
NO_OBJECT = Text("The body must be a JSON object.", "El cuerpo debe ser un objeto JSON.")
UNKNOWN_FIELD = Text(
    "`{name}` is not a field that this gateway takes.", "`{name}` no es un campo que este gateway acepte."
)
NO_STRING = Text("`{name}` must be a string.", "`{name}` debe ser un texto.")
NO_INTEGER = Text("`{name}` must be an integer.", "`{name}` debe ser un número entero.")
NO_BOOLEAN = Text("`{name}` must be true or false.", "`{name}` debe ser true o false.")
NO_MAPPING = Text("`{name}` must be an object.", "`{name}` debe ser un objeto.")
MISSING = Text("`{name}` is required.", "`{name}` es obligatorio.")
EMPTY = Text("`{name}` is empty.", "`{name}` está vacío.")
NO_TARGET = Text(
    "`{name}` is no address of a web server: give https://, a host name and a path, in ASCII and without spaces.",
    "`{name}` no es la dirección de un servidor web: indique https://, un nombre de host y una ruta, en ASCII y sin"
    " espacios.",
)
TARGET_LONG = Text(
    "`{name}` has {count} characters; at most {most} are taken.",
    "`{name}` tiene {count} caracteres; se aceptan {most} como máximo.",
)
TARGET_USER = Text(
    "`{name}` holds a user name or a password: leave it out, and check the signature instead.",
    "`{name}` contiene un nombre de usuario o una contraseña: quítelos, y verifique la firma en su lugar.",
)
TARGET_PLAIN = Text("`{name}` must begin with https://.", "`{name}` debe empezar con https://.")
TARGET_PRIVATE = Text(
    "`{name}` leads to `{host}`, which is not on the public internet.",
    "`{name}` lleva a `{host}`, que no está en la internet pública.",
)
NOT_WITHIN = Text(
    "`{name}` is {value}; it must be from {least} to {most}.", "`{name}` es {value}; debe estar entre {least} y {most}."
)
ONE_OF = Text("`{name}` must be one of: {values}.", "`{name}` debe ser uno de: {values}.")
ONE_OF_MODEL = Text(
    "`{name}` for `{model}` must be one of: {values}.", "`{name}` para `{model}` debe ser uno de: {values}."
)
TOO_LONG = Text(
    "`{name}` has {count} characters; at most {most} are allowed.",
    "`{name}` tiene {count} caracteres; se permiten como máximo {most}.",
)
TOO_LONG_FOR = Text(
    "`{name}` has {count} characters; at most {most} are allowed for `{model}`.",
    "`{name}` tiene {count} caracteres; para `{model}` se permiten como máximo {most}.",
)
HOLDS_NUL = Text("`{name}` holds a NUL character.", "`{name}` contiene un carácter NUL.")
METADATA_PAIRS = Text(
    "`metadata` has {count} pairs; at most {most} are allowed.",
    "`metadata` tiene {count} pares; se permiten como máximo {most}.",
)
METADATA_KEY = Text(
    "`metadata` has the key `{key}`; a key has from 1 to {most} characters, without `,`, `=` and NUL.",
    "`metadata` tiene la clave `{key}`; una clave tiene de 1 a {most} caracteres, sin `,`, `=` ni NUL.",
)
METADATA_LARGE = Text(
    "`metadata` has {count} bytes as JSON; at most {most} are allowed.",
    "`metadata` tiene {count} bytes como JSON; se permiten como máximo {most}.",
)
TAGS = Text(
    "`x-ghub-tags` names {count} tags; at most {most} are allowed.",
    "`x-ghub-tags` nombra {count} etiquetas; se permiten como máximo {most}.",
)
TAG = Text(
    "`x-ghub-tags` has the tag `{tag}`; a tag has at most {most} characters, and all of them are printable.",
    "`x-ghub-tags` tiene la etiqueta `{tag}`; una etiqueta tiene como máximo {most} caracteres, todos imprimibles.",
)
NOT_TAKEN = Text("`{model}` takes no `{name}`.", "`{model}` no acepta `{name}`.")
NO_STREAM = Text(
    "`stream` must be false: streaming is not offered.", "`stream` debe ser false: el streaming no se ofrece."
)
NO_PARTIAL_IMAGES = Text(
    "`partial_images` must be 0: streaming is not offered.",
    "`partial_images` debe ser 0: el streaming no se ofrece.",
)
TRANSPARENT = Text(
    "`background` can be `transparent` with `output_format` png or webp only.",
    "`background` puede ser `transparent` solo con `output_format` png o webp.",
)
COMPRESSION = Text(
    "`output_compression` needs an `output_format` of jpeg or webp.",
    "`output_compression` requiere `output_format` jpeg o webp.",
)

# --- models -----------------------------------------------------------------------------------------------------------

NO_MODEL = Text("There is no model `{model}`.", "No existe el modelo `{model}`.")
SEE_MODELS = Text("See GET /v1/models.", "Consulte GET /v1/models.")
NO_PRICE = Text(
    "`{model}` has no price yet, so it is not offered.", "`{model}` todavía no tiene precio, así que no se ofrece."
)
GONE = Text("`{model}` is not offered by its provider any more.", "El proveedor de `{model}` ya no lo ofrece.")
INSTEAD = Text("Use `{model}` instead.", "Use `{model}` en su lugar.")

# --- money and limits -------------------------------------------------------------------------------------------------

BALANCE = Text(
    "This order may cost {cost} MXN, and {available} MXN are available.",
    "Este pedido puede costar {cost} MXN y hay {available} MXN disponibles.",
)
TOP_UP = Text("Top up your balance.", "Recargue su saldo.")
TOP_UP_AT = Text("Top up at {url}.", "Recargue en {url}.")
TOP_UP_WITH = Text("Top up with `{command}`.", "Recargue con `{command}`.")
FX_MISSING = Text(
    "The exchange rate for {month} is not set yet; nothing was charged.",
    "El tipo de cambio de {month} todavía no está fijado; no se cobró nada.",
)
THE_KEYS = Text("This API key's", "de esta clave de API")
THE_ORGANISATIONS = Text("Your organisation's", "de su organización")
REQUESTS = Text("requests", "peticiones")
IMAGES = Text("images", "imágenes")
DAY = Text("day", "día")
MONTH = Text("month", "mes")
COUNTS_AS = Text("This order counts as {cost} {what}.", "Este pedido cuenta como {cost} {what}.")
RATE = Text("{whose} limit is {limit} {what} per minute.", "El límite {whose} es de {limit} {what} por minuto.")
TRY_AGAIN = Text("Try again in {seconds:g} seconds.", "Inténtelo de nuevo en {seconds:g} segundos.")
READS_OF_USAGE = Text("reports of usage", "reportes de uso")
READS_OF_STATEMENTS = Text("reads of statements", "consultas de estados de cuenta")
READS_OF_HISTORY = Text("reads of generations", "consultas de generaciones")
CANCELS = Text("cancels of orders", "cancelaciones de pedidos")
READS_OF_CREDITS = Text("reads of credits", "consultas de saldo")
READS_OF_DRY_RUNS = Text("dry runs", "ensayos de pedidos")
READS_OF_MODELS = Text("reads of models", "consultas de modelos")
MONTH_LIKE = Text("`{name}` must be a month as YYYY-MM.", "`{name}` debe ser un mes como AAAA-MM.")
NOT_BEGUN = Text("{month} has not begun.", "{month} todavía no empieza.")
NO_STATEMENT = Text(
    "There is no statement for {month}: the account begins later.",
    "No hay estado de cuenta de {month}: la cuenta empieza después.",
)
STATEMENT_LANGUAGE = Text("`{name}` must be `es` or `en`.", "`{name}` debe ser `es` o `en`.")
STATEMENT_KEY = Text(
    "A statement is the whole organisation's: use a live key that reads its organisation's orders.",
    "El estado de cuenta es de toda la organización: use una clave real que lea los pedidos de su organización.",
)
NO_PDF = Text(
    "This gateway makes no PDF: ask for `text/html`, and print that.",
    "Este gateway no genera PDF: pida `text/html` e imprímalo.",
)
ONE_REPORT = Text(
    "Another report of your organisation is being made; ask for one at a time.",
    "Ya se está haciendo otro reporte de su organización; pida uno a la vez.",
)
REPLAYS_AT_ONCE = Text(
    "{most} earlier orders of your organisation are being sent again in base64 at this moment; try again in a moment.",
    "En este momento se reenvían en base64 {most} pedidos anteriores de su organización; intente en un momento.",
)
DOCUMENTS_AT_ONCE = Text(
    "This description is being sent to {most} clients at this moment; try again in a moment.",
    "En este momento se envía esta descripción a {most} clientes; intente de nuevo en un momento.",
)
AT_ONCE = Text(
    "{whose} limit is {limit} images being made at once; {used} are, and this order asks for {images}.",
    "El límite {whose} es de {limit} imágenes en proceso a la vez; hay {used}, y este pedido solicita {images}.",
)
BUDGET = Text(
    "{whose} budget is {limit} MXN per month; {used} MXN are spent or on hold, and this order may cost {cost} MXN.",
    "El presupuesto {whose} es de {limit} MXN por mes; {used} MXN están gastados o retenidos, y este pedido puede"
    " costar {cost} MXN.",
)
QUOTA = Text(
    "{whose} limit is {limit} images per {period}; {used} are made or on their way, and this order asks for {images}.",
    "El límite {whose} es de {limit} imágenes por {period}; {used} están hechas o en camino, y este pedido solicita"
    " {images}.",
)
NEXT_PERIOD = Text(
    "The next {period} begins at {local} in Mexico City ({utc}).",
    "El próximo {period} empieza el {local} en la Ciudad de México ({utc}).",
)
SLOW = Text(
    "Such an image of `{model}` may take {takes} s, and an answer is waited for at most {deadline} s: send the order"
    " with the header `Prefer: respond-async`, and ask for its result by its id.",
    "Una imagen así de `{model}` puede tardar {takes} s, y una respuesta se espera a lo más {deadline} s: envíe el"
    " pedido con el encabezado `Prefer: respond-async` y pida el resultado por su id.",
)
UNPAID = Text(
    "Too many of your organisation's orders in this hour were not ready in time, or were cancelled while they were"
    " being made; nothing of them was charged.",
    "En esta hora, demasiados pedidos de su organización no estuvieron listos a tiempo, o se cancelaron mientras se"
    " hacían; no se cobró nada de ellos.",
)
HOLDS = Text(
    "Too many of your organisation's images are being made at this moment.",
    "En este momento se están generando demasiadas imágenes de su organización.",
)

# --- what the gateway cannot do now -----------------------------------------------------------------------------------

WALLET_AWAY = Text(
    "The gateway cannot check balances right now; nothing was charged.",
    "El gateway no puede consultar saldos en este momento; no se cobró nada.",
)
BUSY = Text(
    "The gateway is busy: it is making as many images as it can; nothing was charged.",
    "El gateway está ocupado: está generando todas las imágenes que puede; no se cobró nada.",
)
CROWDED = Text(
    "The gateway is busy: more orders come than it can take on; nothing was charged.",
    "El gateway está ocupado: llegan más pedidos de los que puede aceptar; no se cobró nada.",
)
SHARE = Text(
    "The gateway is busy: your organisation has its share of it, and others wait; nothing was charged.",
    "El gateway está ocupado: su organización ya tiene su parte y otras esperan; no se cobró nada.",
)
MANY_CONNECTIONS = Text(
    "The gateway has as many connections as it can hold; nothing was charged.",
    "El gateway tiene todas las conexiones que puede atender; no se cobró nada.",
)
BACKLOG = Text(
    "The gateway is catching up with its books; nothing was charged.",
    "El gateway está poniendo al día sus registros; no se cobró nada.",
)
DISK_FULL = Text(
    "The gateway is running out of disk; nothing was charged.",
    "Al gateway se le está acabando el disco; no se cobró nada.",
)
DISK_FAILS = Text("The gateway's disk fails; nothing was charged.", "El disco del gateway falla; no se cobró nada.")
STOPPING = Text("The gateway is restarting; nothing was charged.", "El gateway se está reiniciando; no se cobró nada.")
FAULTY = Text(
    "The gateway does not work as it should; nothing was charged.",
    "El gateway no funciona como debe; no se cobró nada.",
)
MEMORY_FULL = Text(
    "The gateway's memory for money is full or not set up; nothing was charged.",
    "La memoria del gateway para el dinero está llena o mal configurada; no se cobró nada.",
)
STORE_AWAY = Text(
    "The store for images is away; nothing was charged.",
    "El almacenamiento de imágenes no está disponible; no se cobró nada.",
)
STORE_NOT_SET_UP = Text(
    "The store for images is not set up; nothing was charged.",
    "El almacenamiento de imágenes no está configurado; no se cobró nada.",
)
SANDBOX_NOT_STORED = Text(
    "The sandbox's picture could not be stored; nothing was charged.",
    "No se pudo guardar la imagen del sandbox; no se cobró nada.",
)
FAULT = Text(
    "The gateway failed; nothing was charged for this request.",
    "El gateway falló; no se cobró nada por esta petición.",
)

# --- what became of an upstream call ----------------------------------------------------------------------------------

PROVIDER_REFUSED = Text(
    "The provider refused the prompt or its images: content policy.",
    "El proveedor rechazó el prompt o sus imágenes: política de contenido.",
)
PROVIDER_UNREACHABLE = Text(
    "The model's provider cannot be reached.",
    "No se puede llegar al proveedor del modelo.",
)
PROVIDER_FULL = Text(
    "The model's provider takes no more work right now.",
    "El proveedor del modelo no acepta más trabajo por ahora.",
)
PROVIDER_BUSY = Text(
    "The model's provider is too busy to take the work on.",
    "El proveedor del modelo está demasiado ocupado para aceptar el trabajo.",
)
PROVIDER_RESTS = Text(
    "The model's provider has failed again and again; it is given work again in a moment.",
    "El proveedor del modelo ha fallado una y otra vez; en un momento se le vuelve a dar trabajo.",
)
PROVIDER_AWAY = Text(
    "The model's provider is unavailable.",
    "El proveedor del modelo no está disponible.",
)
PROVIDER_BROKE_OFF = Text(
    "The model's provider broke off without a result.",
    "El proveedor del modelo cortó sin dar un resultado.",
)
PROVIDER_REJECTED = Text(
    "The model's provider rejected the request.",
    "El proveedor del modelo rechazó la petición.",
)
NO_ACCESS = Text(
    "The gateway's access to the model's provider is not in order.",
    "El acceso del gateway al proveedor del modelo no está en orden.",
)
MODEL_RETIRED = Text(
    "The model's provider does not offer this model any more.",
    "El proveedor ya no ofrece este modelo.",
)
NO_RESULT = Text(
    "The model's provider sent something that is no result.",
    "El proveedor del modelo envió algo que no es un resultado.",
)
NO_IMAGE = Text(
    "The model's provider delivered no image.",
    "El proveedor del modelo no entregó ninguna imagen.",
)
NOT_AN_IMAGE = Text(
    "The model's provider delivered something that is not an image.",
    "El proveedor del modelo entregó algo que no es una imagen.",
)
NOT_FETCHED = Text(
    "The finished image could not be fetched from the model's provider.",
    "No se pudo descargar la imagen terminada del proveedor.",
)
NOT_STORED = Text(
    "The finished image could not be stored.",
    "No se pudo guardar la imagen terminada.",
)
NOT_IN_TIME = Text(
    "No image was ready in time; nothing was charged.",
    "Ninguna imagen estuvo lista a tiempo; no se cobró nada.",
)
MAKING_FAILED = Text(
    "The gateway failed at making the image; nothing was charged.",
    "El gateway falló mientras se hacía la imagen; no se cobró nada.",
)

MAKER_DIED = Text(
    "The gateway that made the order stopped suddenly, and what the model's provider did is not known; nothing was"
    " charged.",
    "El gateway que hacía el pedido se detuvo de repente, y no se sabe qué hizo el proveedor del modelo; no se cobró"
    " nada.",
)
WAS_CANCELLED = Text("The order was cancelled; nothing was charged.", "El pedido se canceló; no se cobró nada.")

# --- what became of an order ------------------------------------------------------------------------------------------

PLACED_BEFORE = Text(
    "This order was placed before, and what came of it is not known yet; nothing more is charged.",
    "Este pedido ya se hizo antes y todavía no se sabe qué fue de él; no se cobra nada más.",
)
CHARGED = Text(
    "The order is charged, and its answer was lost: {where} has its images."
    " The same Idempotency-Key, or the SDK's own retry, brings them, too.",
    "El pedido se cobró y su respuesta se perdió: {where} tiene sus imágenes."
    " También las entrega la misma Idempotency-Key, o el reintento del propio SDK.",
)
END_UNKNOWN = Text(
    "Whether the order is charged is not known yet: {where} tells it within minutes.",
    "Todavía no se sabe si el pedido se cobró: {where} lo dirá en unos minutos.",
)
CHARGED_NOT_BOOKED = Text(
    "This order is charged, and its images are not in the ledger yet: ask again.",
    "Este pedido se cobró y sus imágenes todavía no están en los registros: pregunte de nuevo.",
)
RAN_OUT = Text(
    "No answer to this order is known. It is charged only if its gateway had answered it, and then its images are here"
    " as soon as that gateway's journal is read.",
    "No se conoce ninguna respuesta a este pedido. Se cobra solo si su gateway lo había respondido, y entonces sus"
    " imágenes estarán aquí en cuanto se lea el registro de ese gateway.",
)
NOT_CANCELLED_ENDED = Text(
    "This order has ended: {where} has its end.", "Este pedido ya terminó: {where} tiene su resultado."
)
NOT_CANCELLED_AWAITED = Text(
    "Only an order that was sent with `Prefer: respond-async` can be cancelled; this one runs to its end, and is"
    " charged if it delivers.",
    "Solo puede cancelarse un pedido que se envió con `Prefer: respond-async`; este sigue hasta su fin y se cobra si"
    " entrega.",
)
NOT_CANCELLED_RUNS = Text(
    "The model's provider makes this order, and has not confirmed that it stops: it runs to its end, and is charged if"
    " it delivers. {where} tells how it ended.",
    "El proveedor del modelo hace este pedido y no ha confirmado que se detiene: sigue hasta su fin y se cobra si"
    " entrega. {where} dice cómo terminó.",
)
WEBHOOK_LONG = Text(
    "`webhook` is for orders that are sent with `Prefer: respond-async`: the answer to this one has its images.",
    "`webhook` es para pedidos que se envían con `Prefer: respond-async`: la respuesta a este trae sus imágenes.",
)
WEBHOOK_NONE = Text(
    "`webhook`: this gateway calls no webhooks. Send the order without it, and ask for its result by its id.",
    "`webhook`: este gateway no llama a ningún webhook. Envíe el pedido sin él y pida su resultado por su id.",
)
NO_GENERATION = Text("Your organisation has no such generation.", "Su organización no tiene esa generación.")

# --- a query's parameters ---------------------------------------------------------------------------------------------

UNKNOWN_PARAMETER = Text("`{name}` is not known; there are {known}.", "`{name}` no se conoce; hay {known}.")
TWICE = Text("`{name}` is given twice.", "`{name}` aparece dos veces.")
WHOLE_NUMBER = Text(
    "`{name}` must be an integer from {least} to {most}.", "`{name}` debe ser un número entero de {least} a {most}."
)
CURSOR = Text(
    "`{name}` must be `next_cursor` of the page before.", "`{name}` debe ser el `next_cursor` de la página anterior."
)
BOTH_DAYS = Text(
    "`{name}` is missing: send both `from` and `to`, or neither for this month.",
    "Falta `{name}`: envíe `from` y `to`, o ninguno para este mes.",
)
NO_DAY = Text("`{name}` must be a day as YYYY-MM-DD.", "`{name}` debe ser un día como YYYY-MM-DD.")
TOO_MANY_ROWS = Text(
    "`{name}` makes more than {most} rows here: ask for fewer days, or group by less.",
    "`{name}` da aquí más de {most} filas: pida menos días o agrupe por menos.",
)
NO_GROUP = Text(
    "`{name}`: {value} is none of day, model, key, user, safety_identifier, tag and metadata.KEY.",
    "`{name}`: {value} no es day, model, key, user, safety_identifier, tag ni metadata.KEY.",
)
ONE_LABEL = Text(
    "`{name}` takes one of user, safety_identifier, tag and metadata.KEY at a time.",
    "`{name}` acepta solo uno de user, safety_identifier, tag y metadata.KEY a la vez.",
)
GROUP_TWICE = Text("`{name}` names something twice.", "`{name}` nombra algo dos veces.")
BEFORE_FROM = Text("`{name}` lies before `from`.", "`{name}` es anterior a `from`.")
TOO_MANY_DAYS = Text(
    "`{name}` makes more than {most} days, which is the most at once.",
    "`{name}` da más de {most} días, que es el máximo por consulta.",
)
