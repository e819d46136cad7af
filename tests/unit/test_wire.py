"""Bodies become orders, or errors that name their field; results become OpenAI's JSON."""

import hashlib
import json
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.catalogue import read_catalogue
from metering.answered import max_bytes
from metering.journal.frames import MAX_ENTRY_BYTES
from proxy.errors import ApiError, Kind
from proxy.messages import Text
from proxy.orders.order import (
    MAX_IMAGES,
    MAX_TAGS,
    METADATA_BYTES,
    PROMPT_CHARACTERS,
    TAG_CHARACTERS,
    fingerprint,
    no_model,
    parse_order,
    result_reply,
)
from proxy.orders.result import Result
from proxy.ports import Order
from tests.long import examples

CATALOGUE = read_catalogue(None)
SOLD = [name for name, model in CATALOGUE.models.items() if model.priced]
FLUX, GPT = "fal/flux-1.1-pro", "openai/gpt-image-1"
FIELDS = ("model", "prompt", "n", "size", "quality", "response_format", "stream", "user", "metadata", "partial_images")


def parsed(**fields: Any) -> Order:
    return parse_order(json.dumps({"model": FLUX, "prompt": "x", **fields}).encode(), CATALOGUE)


def refused(body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_order(body, CATALOGUE)
    return caught.value


def test_the_smallest_order_has_the_published_defaults() -> None:
    """One image, 1024x1024, no quality and no user."""
    assert parsed() == Order(FLUX, CATALOGUE.models[FLUX], "x", 1, "1024x1024", None)


def test_every_field_is_taken_over() -> None:
    """In the customer's form; quality in the upstream's word."""
    fields = {"n": 8, "size": "1536x1024", "quality": "hd", "response_format": "url", "stream": False, "user": "u1"}
    order = parsed(model=GPT, prompt=" un faro ", **fields)
    assert order == Order(GPT, CATALOGUE.models[GPT], " un faro ", 8, "1536x1024", "high", {"user": "u1"}, user="u1")


@pytest.mark.parametrize("field", FIELDS[2:])
def test_null_is_unset(field: str) -> None:
    """The order is the same as without the field."""
    assert parsed(**{field: None}) == parsed()


@pytest.mark.parametrize("field", FIELDS[:2])
def test_null_for_a_required_field_is_its_absence(field: str) -> None:
    """The error is the one for a missing field."""
    fields = {"model": FLUX, "prompt": "x", field: None}
    error = refused(json.dumps(fields).encode())
    assert (error.kind, error.param, error.message) == (Kind.INVALID_REQUEST, field, f"`{field}` is required.")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": " \n\t"}, "prompt"),
        ({"prompt": "x" * (PROMPT_CHARACTERS + 1)}, "prompt"),
        ({"prompt": ["x"]}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": -1}, "n"),
        ({"n": MAX_IMAGES + 1}, "n"),
        ({"n": 1.0}, "n"),
        ({"n": True}, "n"),
        ({"n": "1"}, "n"),
        ({"n": 10**40}, "n"),
        ({"size": ""}, "size"),
        ({"size": "1024X1024"}, "size"),
        ({"size": "1536x1024"}, "size"),
        ({"size": 1024}, "size"),
        ({"model": GPT, "size": "1024x768"}, "size"),
        ({"model": GPT, "quality": "best"}, "quality"),
        ({"model": GPT, "quality": "High"}, "quality"),
        ({"quality": 1}, "quality"),
        ({"response_format": "png"}, "response_format"),
        ({"response_format": 1}, "response_format"),
        ({"stream": True}, "stream"),
        ({"stream": 0}, "stream"),
        ({"model": GPT, "user": "u" * 257}, "user"),
        ({"user": 7}, "user"),
        ({"style": "natural"}, "style"),
        ({"style": "standard"}, "style"),
        ({"background": "opaque"}, "background"),
        ({"moderation": "low"}, "moderation"),
        ({"model": GPT, "size": "standard"}, "size"),
        ({"model": "openai/dall-e-3", "style": "vivid "}, "style"),
        ({"metadata": "x"}, "metadata"),
        ({"safety_identifier": 7}, "safety_identifier"),
        ({"partial_images": 1}, "partial_images"),
        ({"partial_images": False}, "partial_images"),
        ({"output_format": "webp"}, "output_format"),
        ({"output_compression": 50}, "output_compression"),
        ({"model": GPT, "output_format": "gif"}, "output_format"),
        ({"model": GPT, "output_format": "jpeg", "output_compression": 101}, "output_compression"),
        ({"model": GPT, "output_compression": 50}, "output_compression"),
        ({"model": GPT, "output_format": "auto", "output_compression": 50}, "output_compression"),
        ({"model": GPT, "output_format": "jpeg", "background": "transparent"}, "background"),
        ({"model": GPT, "moderation": "none"}, "moderation"),
        ({"model": "fal/recraft-v3", "prompt": "x" * 1001}, "prompt"),
        ({"negative_prompt": "y"}, "negative_prompt"),
        ({"k" * 500: 1}, "k" * 64),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    """400, with the field as `param` and in the message."""
    error = refused(json.dumps({"model": FLUX, "prompt": "x", **fields}).encode())
    assert (error.kind, error.param, error.retry) == (Kind.INVALID_REQUEST, param, False)
    assert f"`{param}`" in error.message


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b'"x"', b"1", b"null", b"\xff", b'{"a":1}{"a":1}', b'{"n":NaN}', b'{"prompt":"\\ud800"}'),
        *(b"[" * 60_000, b'{"a":' * 10_000, b"\xef\xbb\xbf{}"),
    ],
)
def test_what_is_no_json_object_is_refused_without_a_field(body: bytes) -> None:
    """400 that speaks of the body."""
    error = refused(body)
    assert (error.kind, error.param) == (Kind.INVALID_REQUEST, None)
    assert "body" in error.message


@pytest.mark.parametrize("model", ["", "flux-1.1-pro", "fal/flux-1.1-pro ", "FAL/FLUX-1.1-PRO", "x" * 1000, "é\n"])
def test_an_unknown_model_is_404(model: str) -> None:
    """Its name is repeated, shortened."""
    error = refused(json.dumps({"model": model, "prompt": "x"}).encode())
    assert (error.kind, error.param) == (Kind.MODEL_NOT_FOUND, "model")
    assert model[:64] in error.message and len(error.message) < 150


def test_a_model_without_a_price_is_refused_and_never_free() -> None:
    """404 before anything is asked of an upstream."""
    unpriced = CATALOGUE.models[FLUX].model_copy(update={"usd_per_image": None})
    catalogue = CATALOGUE.model_copy(update={"models": {FLUX: unpriced}})
    with pytest.raises(ApiError, match="no price") as caught:
        parse_order(b'{"model":"fal/flux-1.1-pro","prompt":"x"}', catalogue)
    assert caught.value.kind is Kind.MODEL_NOT_FOUND


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("dall-e-3", "openai/dall-e-3"),
        ("dall-e-2", "openai/dall-e-3"),
        ("openai/dall-e-2", "openai/dall-e-3"),
        ("gpt-image-1", GPT),
        ("gpt-image-1-mini", GPT),
        ("flux-1.1-pro", FLUX),
        ("flux-pro-1.1", FLUX),
        ("FAL/Flux-1.1-Pro ", FLUX),
        ("openai/flux-1.1-pro", FLUX),
        ("recraft-v3", "fal/recraft-v3"),
        ("gpt-4o", None),
        ("x", None),
        ("", None),
        ("a/" * 500, None),
    ],
)
def test_a_name_that_is_nearly_a_models_is_told_the_whole_one(asked: str, meant: str | None) -> None:
    """Without its provider, with another number, in capitals; a name that is like none gets no guess."""
    message = refused(json.dumps({"model": asked, "prompt": "x"}).encode()).message
    assert isinstance(message, Text)
    if meant is None:
        assert "mean" not in message
    else:
        assert f"Did you mean `{meant}`?" in message and f"¿Quiso decir `{meant}`?" in message.es
    assert message.endswith("See GET /v1/models.")


def test_a_model_that_is_not_offered_is_never_meant() -> None:
    """Neither one without a price nor one whose provider is not set up here."""
    unpriced = CATALOGUE.models["openai/dall-e-3"].model_copy(update={"usd_per_image": None})
    catalogue = CATALOGUE.model_copy(update={"models": {"openai/dall-e-3": unpriced, GPT: CATALOGUE.models[GPT]}})
    assert "mean" not in no_model("dall-e-3", catalogue).message


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {}},
        {"partial_images": 0},
        {"stream": False},
        {"size": "auto"},
        {"size": "default"},
        {"quality": "auto"},
        {"quality": "standard"},
        {"output_format": "auto"},
        {"background": "auto"},
        {"moderation": "auto"},
        {"style": "vivid"},
        {"style": "auto"},
        {"style": "default"},
    ],
)
def test_what_asks_for_nothing_is_passed_over(fields: dict[str, Any]) -> None:
    """The model has no such field: the order is the same, and so is its fingerprint."""
    assert parsed(**fields) == parsed()
    assert fingerprint(parsed(**fields)) == fingerprint(parsed())


@pytest.mark.parametrize("model", SOLD)
@pytest.mark.parametrize("fields", [{"quality": "default"}, {"style": "default"}, {"background": "default"}])
def test_default_is_unset_for_every_model(model: str, fields: dict[str, str]) -> None:
    """No model has it as a word of its own."""
    assert parsed(model=model, **fields) == parsed(model=model)


def test_a_word_of_the_models_own_is_sent_to_it() -> None:
    """`auto` and `vivid` are sent if the model knows them."""
    assert parsed(model=GPT, background="auto", moderation="auto").fields == {
        "background": "auto",
        "moderation": "auto",
    }
    assert parsed(model="openai/dall-e-3", style="vivid").fields == {"style": "vivid"}


def test_user_is_a_part_of_what_is_identical_for_every_model() -> None:
    """It is sent if the model accepts it, as before with the same fingerprint; otherwise it is kept separately."""
    one, other = parsed(user="u1"), parsed(user="u2")
    assert one.fields == other.fields == {}
    assert len({fingerprint(order) for order in (one, other, parsed())}) == 3
    before = [GPT, "x", 1, "1024x1024", None, [("user", "u1")], "url"]
    assert fingerprint(parsed(model=GPT, user="u1")) == hashlib.sha256(orjson.dumps(before)).hexdigest()


@pytest.mark.rule(18)
@pytest.mark.rule(38)
def test_whose_image_it_is_is_a_part_of_what_is_identical_and_labels_are_not() -> None:
    """Nobody is given another end user's image, whichever field names them; tags and metadata may differ."""
    orders = [parsed(**fields) for fields in ({}, {"safety_identifier": "u1"}, {"safety_identifier": "u2"})]
    orders += [parsed(user="u1"), parsed(user="u1", safety_identifier="u1")]
    assert len({fingerprint(order) for order in orders}) == 5
    plain = orjson.dumps({"model": FLUX, "prompt": "x", "metadata": {"team": "a"}})
    sorted_otherwise = parse_order(plain, CATALOGUE, tags=["one"])
    assert (sorted_otherwise.metadata, sorted_otherwise.tags) == ('{"team":"a"}', '["one"]')
    assert fingerprint(sorted_otherwise) == fingerprint(parsed())


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"user": "u" * 513}, "user", "`user` has 513 characters; at most 512"),
        ({"user": "u\0"}, "user", "`user` holds a NUL"),
        ({"safety_identifier": "𝄞" * 513}, "safety_identifier", "513 characters; at most 512"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata", "17 pairs; at most 16"),
        ({"metadata": {"k" * 65: ""}}, "metadata", "from 1 to 64 characters"),
        ({"metadata": {"": ""}}, "metadata", "the key ``"),
        ({"metadata": {"a=b": ""}}, "metadata", "the key `a=b`"),
        ({"metadata": {"a,b": ""}}, "metadata", "without `,`"),
        ({"metadata": {"team": "v" * 513}}, "metadata", "`metadata.team` has 513 characters; at most 512"),
        ({"metadata": {"team": "v\0"}}, "metadata", "`metadata.team` holds a NUL"),
        ({"metadata": {"team": 5}}, "metadata", "`metadata.team` must be a string"),
        ({"metadata": {"team": None}}, "metadata", "`metadata.team` must be a string"),
        ({"metadata": {"c": [1, {}]}}, "metadata", "`metadata.c` must be a string"),
        ({"metadata": ["team"]}, "metadata", "must be an object"),
        ({"metadata": {str(number): "𝄞" * 300 for number in range(16)}}, "metadata", "bytes as JSON; at most 12288"),
    ],
)
def test_labels_are_bounded_and_the_message_names_the_field(fields: dict[str, Any], param: str, words: str) -> None:
    """In both languages."""
    error = refused(orjson.dumps({"model": FLUX, "prompt": "x", **fields}))
    assert (error.kind, error.param) == (Kind.INVALID_REQUEST, param)
    assert words in error.message and isinstance(error.message, Text) and error.message.es != error.message


def test_the_largest_labels_are_taken_and_the_journal_has_room_for_them() -> None:
    """OpenAI's own limits in ASCII, and the longest tags; text that JSON escapes counts as it is written."""
    metadata = {f"{number:02d}" + "k" * 62: "v" * 512 for number in range(16)}
    fields = {"user": "𝄞" * 512, "safety_identifier": "s" * 512, "metadata": metadata}
    tags = [f"{number:02d}" + "ñ" * 62 for number in range(16)]
    order = parse_order(orjson.dumps({"model": FLUX, "prompt": "x", **fields}), CATALOGUE, tags=tags)
    assert orjson.loads(order.metadata or "") == metadata
    assert orjson.loads(order.tags or "") == tags
    assert max_bytes(8, 4 * (METADATA_BYTES + MAX_TAGS * (4 * TAG_CHARACTERS + 3))) <= MAX_ENTRY_BYTES
    for text in ('"' * 512, "\\" * 512, "\n" * 512, "\1" * 512):
        escaped = parse_order(orjson.dumps({"model": FLUX, "prompt": "x", "metadata": {"a": text}}), CATALOGUE)
        entry = orjson.dumps(orjson.dumps({"metadata": escaped.metadata}).decode())
        assert len(entry) - len(orjson.dumps('{"metadata":""}')) <= escaped.labels_bytes


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (["t" * 65], "at most 64 characters"),
        (["a\x01b"], "printable"),
        ([str(number) for number in range(17)], "17 tags; at most 16"),
    ],
)
def test_tags_are_bounded(tags: list[str], words: str) -> None:
    """The message names the header."""
    with pytest.raises(ApiError) as caught:
        parse_order(orjson.dumps({"model": FLUX, "prompt": "x"}), CATALOGUE, tags=tags)
    assert caught.value.param == "x-ghub-tags"
    assert words in caught.value.message and "`x-ghub-tags`" in caught.value.message


def test_tags_are_each_kept_once() -> None:
    """Without spaces around them and without empty ones, in their order."""
    order = parse_order(orjson.dumps({"model": FLUX, "prompt": "x"}), CATALOGUE, tags=["b", " a b ", "", "b", "\t"])
    assert order.tags == '["b","a b"]'
    assert parsed().tags is None


@pytest.mark.parametrize("fields", [{"stream": True}, {"partial_images": 2}])
def test_partial_images_are_told_that_streaming_is_not_offered(fields: dict[str, Any]) -> None:
    """In either language."""
    message = refused(json.dumps({"model": FLUX, "prompt": "x", **fields}).encode()).message
    assert isinstance(message, Text)
    assert "streaming is not offered" in message and "el streaming no se ofrece" in message.es


def test_the_prompt_is_counted_in_characters() -> None:
    """4,000 of them are taken, however many bytes each has."""
    assert parsed(prompt="𝄞" * PROMPT_CHARACTERS).prompt == "𝄞" * PROMPT_CHARACTERS


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ("low", "low"),
        ("medium", "medium"),
        ("high", "high"),
        ("auto", "auto"),
        ("standard", "medium"),
        ("hd", "high"),
        (None, None),
    ],
)
def test_quality_is_sent_in_the_word_of_a_model_that_has_it(asked: str | None, sent: str | None) -> None:
    """gpt-image-1 takes its own words, and OpenAI's older two."""
    assert parsed(model=GPT, quality=asked).quality == sent


@pytest.mark.parametrize("asked", ["standard", "hd", "low", "nonsense", ""])
def test_quality_is_passed_over_by_a_model_that_has_none(asked: str) -> None:
    """Any word is taken, none is sent."""
    assert parsed(quality=asked).quality is None


@pytest.mark.parametrize("model", SOLD)
def test_every_size_of_the_catalogue_is_taken(model: str) -> None:
    """And `auto` is 1024x1024."""
    for size in CATALOGUE.models[model].sizes:
        assert parsed(model=model, size=size).size == size
    assert parsed(model=model, size="auto").size == "1024x1024"


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=10),
    st.sampled_from([FLUX, GPT, "1024x1024", "hd", "url", "auto", "x" * 5000]),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
)
BODIES = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), VALUES, max_size=6)


def order_or_error(body: bytes) -> Order | ApiError:
    try:
        return parse_order(body, CATALOGUE)
    except ApiError as error:
        return error


@settings(max_examples=examples(1500), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(body=BODIES, base=st.sampled_from([{}, {"model": FLUX, "prompt": "x"}, {"model": GPT, "prompt": "x"}]))
def test_any_json_is_an_order_or_names_a_field(body: dict[str, Any], base: dict[str, Any]) -> None:
    """An order keeps its promises to everything behind it; an error is a 400 or 404 with a field that the body lacks or
    has."""
    fields = base | body
    order = order_or_error(json.dumps(fields).encode())
    if isinstance(order, ApiError):
        assert order.kind in (Kind.INVALID_REQUEST, Kind.MODEL_NOT_FOUND) and not order.retry
        assert order.param in ("model", "prompt") or order.param in {name[:64] for name in fields}
        return
    assert order.model is CATALOGUE.models[order.model_id]
    assert type(order.n) is int and 1 <= order.n <= MAX_IMAGES
    assert order.size in order.model.sizes
    assert order.quality is None or order.quality in order.model.qualities.values()
    assert order.prompt.strip() and len(order.prompt) <= PROMPT_CHARACTERS
    assert isinstance(order.model.usd_per_image, Decimal)


@settings(max_examples=examples(300), deadline=None, derandomize=True)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_refused_with_an_error_of_ours(body: bytes) -> None:
    """Nothing but ApiError comes out of noise."""
    assert refused(body).kind is Kind.INVALID_REQUEST


def test_the_reply_has_the_published_form() -> None:
    """OpenAI's list of URLs, with our id and model."""
    order_id = "11111111-1111-4111-8111-111111111111"
    result = Result(order_id, 1782412958, FLUX, "fal-ai/flux-pro/v1.1", {}, None, (None, None), 1_680_000, ())
    body = result_reply(result, [{"url": "https://a/0.jpg"}, {"url": "https://a/1.jpg"}])
    assert orjson.loads(body) == {
        "served_model": "fal-ai/flux-pro/v1.1",
        "cost_mxn": "1.68",
        "id": "req_11111111111141118111111111111111",
        "object": "list",
        "created": 1782412958,
        "model": FLUX,
        "data": [{"url": "https://a/0.jpg"}, {"url": "https://a/1.jpg"}],
    }


@pytest.mark.rule(38)
def test_the_user_is_a_part_of_what_makes_two_orders_the_same() -> None:
    """An order that was left is given to its own user's next one, and to no other's (38)."""
    orders = [
        parse_order(orjson.dumps({"model": GPT, "prompt": "x"} | more), CATALOGUE)
        for more in ({}, {"user": "u1"}, {"user": "u2"}, {"user": "u1"})
    ]
    prints = [fingerprint(order) for order in orders]
    assert prints[1] == prints[3] and len(set(prints)) == 3
