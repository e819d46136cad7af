"""The simulated Google, as its clients see it: Imagen by the Gemini API and by Vertex AI, and Vertex's tokens."""

import base64
import time
import warnings
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google import genai
from google.genai import errors, types
from google.oauth2 import service_account

from tests.kits.simulator import (
    GOOGLE_AUTH,
    GOOGLE_PATH,
    IMAGEN,
    Simulator,
    opened,
)

UPSTREAM = "imagen-4.0-generate-001"
VERTEX_PATH = f"/vertex/v1/projects/geekhub/locations/us-central1/publishers/google/models/{UPSTREAM}:predict"
EXPRESS_PATH = f"/vertex/v1/publishers/google/models/{UPSTREAM}:predict"
EMAIL = "gateway@geekhub.iam.gserviceaccount.com"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
AUDIENCE = "https://oauth2.googleapis.com/token"
GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def private_pem(key: rsa.RSAPrivateKey) -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


PUBLIC_PEM = (
    KEY.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
)


def register(simulator: Simulator, **more: Any) -> None:
    wish = {"client_email": EMAIL, "public_key": PUBLIC_PEM} | more
    assert simulator.http.put(f"{simulator.url}/_sim/vertex", json=wish).status_code == 200


def state(simulator: Simulator) -> Any:
    return simulator.http.get(f"{simulator.url}/_sim/vertex").json()


def assertion(key: rsa.RSAPrivateKey = KEY, algorithm: str = "RS256", **claims: Any) -> str:
    now = int(time.time())
    good = {"iss": EMAIL, "scope": SCOPE, "aud": AUDIENCE, "iat": now, "exp": now + 3600}
    wanted = {name: value for name, value in (good | claims).items() if value is not None}
    return jwt.encode(wanted, private_pem(key), algorithm)


def token_reply(simulator: Simulator, signed: str, grant_type: str = GRANT_TYPE) -> httpx2.Response:
    form = {"grant_type": grant_type, "assertion": signed}
    return simulator.http.post(f"{simulator.url}/vertex/token", data=form)


def gemini(simulator: Simulator, prompt: str = "un faro", **parameters: Any) -> httpx2.Response:
    body = {"instances": [{"prompt": prompt}], "parameters": {"sampleCount": 1} | parameters}
    return simulator.http.post(simulator.url + GOOGLE_PATH, headers=GOOGLE_AUTH, json=body)


def vertex(simulator: Simulator, token: str, labels: Any = None, **parameters: Any) -> httpx2.Response:
    body: dict[str, Any] = {"instances": [{"prompt": "un faro"}], "parameters": {"sampleCount": 1} | parameters}
    if labels is not None:
        body["labels"] = labels
    return simulator.http.post(simulator.url + VERTEX_PATH, headers={"authorization": f"Bearer {token}"}, json=body)


def granted(simulator: Simulator, **more: Any) -> str:
    register(simulator, **more)
    token: str = token_reply(simulator, assertion()).json()["access_token"]
    return token


def pictures(reply: httpx2.Response) -> list[Any]:
    items = reply.json().get("predictions", [])
    encoded = [item["bytesBase64Encoded"] for item in items if "bytesBase64Encoded" in item]
    return [opened(base64.b64decode(text, validate=True)) for text in encoded]


# --- Imagen by the Gemini API


@pytest.mark.parametrize(
    ("ratio", "size"),
    [
        ("1:1", (1024, 1024)),
        ("4:3", (1280, 896)),
        ("3:4", (896, 1280)),
        ("16:9", (1408, 768)),
        ("9:16", (768, 1408)),
    ],
)
@pytest.mark.parametrize("mime_type", ["image/png", "image/jpeg"])
def test_imagen_pictures_are_of_the_ratio_and_type_asked_for(
    simulator: Simulator, ratio: str, size: tuple[int, int], mime_type: str
) -> None:
    reply = gemini(simulator, aspectRatio=ratio, outputOptions={"mimeType": mime_type})
    (item,) = reply.json()["predictions"]
    assert set(item) == {"bytesBase64Encoded", "mimeType"}
    assert item["mimeType"] == mime_type
    (picture,) = pictures(reply)
    assert (picture.size, f"image/{picture.format.lower()}") == (size, mime_type)


def test_2k_doubles_both_sides(simulator: Simulator) -> None:
    (picture,) = pictures(gemini(simulator, sampleImageSize="2K", aspectRatio="16:9"))
    assert picture.size == (2816, 1536)


def test_a_reply_has_as_many_predictions_as_were_asked_for_and_they_differ(simulator: Simulator) -> None:
    reply = gemini(simulator, sampleCount=4)
    assert set(reply.json()) == {"predictions"}
    assert len({item["bytesBase64Encoded"] for item in reply.json()["predictions"]}) == 4
    job = simulator.job()
    assert (job["provider"], job["model"], job["upstream_path"]) == ("google", IMAGEN, GOOGLE_PATH)
    assert (job["n"], job["images_delivered"], job["billed"]) == (4, 4, True)


def test_four_is_what_one_gets_without_a_count(simulator: Simulator) -> None:
    body = {"instances": [{"prompt": "un faro"}]}
    reply = simulator.http.post(simulator.url + GOOGLE_PATH, headers=GOOGLE_AUTH, json=body)
    assert len(reply.json()["predictions"]) == 4


def test_two_calls_without_a_seed_do_not_repeat_pictures(simulator: Simulator) -> None:
    first, second = (gemini(simulator).json()["predictions"][0]["bytesBase64Encoded"] for _ in range(2))
    assert first != second


def test_imagen_takes_all_its_parameters(simulator: Simulator) -> None:
    reply = gemini(
        simulator,
        sampleCount=1,
        aspectRatio="1:1",
        guidanceScale=7.5,
        safetySetting="BLOCK_LOW_AND_ABOVE",
        personGeneration="dont_allow",
        includeSafetyAttributes=False,
        includeRaiReason=True,
        language="es",
        outputOptions={"mimeType": "image/jpeg", "compressionQuality": 20},
        sampleImageSize="1K",
    )
    assert reply.status_code == 200
    best = gemini(simulator, outputOptions={"mimeType": "image/jpeg", "compressionQuality": 100})
    assert len(best.content) > len(reply.content)


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"sampleCount": 5}, "sampleCount must be between 1 and 4"),
        ({"sampleCount": 0}, "sampleCount must be"),
        ({"sampleCount": "1"}, "sampleCount must be"),
        ({"aspectRatio": "3:2"}, "'3:2' is not supported for aspectRatio"),
        ({"aspectRatio": "2:3"}, "'2:3' is not supported for aspectRatio"),
        ({"outputOptions": {"mimeType": "image/webp"}}, "not supported for mimeType"),
        ({"outputOptions": {"compressionQuality": 101}}, "compressionQuality must be"),
        ({"outputOptions": {"quality": 1}}, "Unknown parameter quality"),
        ({"outputOptions": "png"}, "outputOptions must be"),
        ({"sampleImageSize": "4K"}, "not supported for sampleImageSize"),
        ({"seed": 7}, "seed is not supported in the Gemini API"),
        ({"negativePrompt": "rain"}, "negativePrompt is not supported"),
        ({"addWatermark": False}, "addWatermark is not supported"),
        ({"enhancePrompt": True}, "enhancePrompt is not supported"),
        ({"storageUri": "gs://bucket"}, "storageUri is not supported"),
        ({"personGeneration": "allow_all"}, "not supported for personGeneration"),
        ({"safetySetting": "block_none"}, "not supported for safetySetting"),
        ({"guidanceScale": "high"}, "guidanceScale must be"),
        ({"includeRaiReason": 1}, "includeRaiReason must be"),
        ({"language": 1}, "language must be"),
        ({"quality": "hd"}, "Unknown parameter quality"),
        ({"response_format": "b64_json"}, "Unknown parameter response_format"),
    ],
)
def test_imagen_refuses_what_the_real_one_refuses(simulator: Simulator, parameters: dict[str, Any], text: str) -> None:
    reply = gemini(simulator, **parameters)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["status"]) == (400, 400, "INVALID_ARGUMENT")
    assert text in error["message"]
    assert simulator.jobs() == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"instances": []},
        {"instances": [{"prompt": "a"}, {"prompt": "b"}]},
        {"instances": [{"prompt": ""}]},
        {"instances": [{"text": "a"}]},
        {"instances": [{"prompt": "a"}], "parameters": []},
        {"instances": [{"prompt": "a"}], "parameters": 7},
        {"instances": [{"prompt": "a"}], "labels": {"team": "a"}},
        {"prompt": "a"},
        [],
    ],
)
def test_a_body_of_another_shape_is_an_invalid_argument(simulator: Simulator, body: Any) -> None:
    reply = simulator.http.post(simulator.url + GOOGLE_PATH, headers=GOOGLE_AUTH, json=body)
    if body == {"instances": [{"prompt": "a"}], "parameters": []}:
        assert reply.status_code == 200  # as good as none
        return
    assert (reply.status_code, reply.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert simulator.jobs() == []


def test_google_wants_a_key_json_and_a_known_model(simulator: Simulator) -> None:
    url = simulator.url + GOOGLE_PATH
    assert simulator.http.post(url, json={}).json()["error"]["status"] == "PERMISSION_DENIED"
    assert simulator.http.post(url, headers=GOOGLE_AUTH, content=b"{").status_code == 400
    for other in (url.replace("imagen-4.0", "imagen-9"), url.replace(":predict", ":paint"), f"{url}/x"):
        reply = simulator.http.post(other, headers=GOOGLE_AUTH, json={})
        assert (reply.status_code, reply.json()["error"]["status"]) == (404, "NOT_FOUND")
    assert simulator.http.post(f"{simulator.url}/vertex/v1/projects/p", json={}).status_code == 404


# --- its refusals, by scenario


@pytest.mark.parametrize("with_reason", [True, False])
def test_rai_filtered(simulator: Simulator, with_reason: bool) -> None:
    simulator.behave(IMAGEN, "rai_filtered", last=2)
    reply = gemini(simulator, sampleCount=4, includeRaiReason=with_reason)
    assert reply.status_code == 200
    predictions = reply.json()["predictions"]
    assert [set(item) for item in predictions[:2]] == [{"bytesBase64Encoded", "mimeType"}] * 2
    assert [set(item) for item in predictions[2:]] == [{"raiFilteredReason"}] * with_reason
    if with_reason:
        assert "29310472" in predictions[2]["raiFilteredReason"]
    assert (simulator.job()["n"], simulator.delivered(), simulator.billed()) == (4, 2, 2)


@pytest.mark.parametrize("with_reason", [True, False])
def test_rai_filtered_of_every_image(simulator: Simulator, with_reason: bool) -> None:
    simulator.behave(IMAGEN, "rai_filtered", all=True)
    reply = gemini(simulator, sampleCount=4, includeRaiReason=with_reason)
    assert reply.status_code == 200
    if with_reason:
        assert [set(item) for item in reply.json()["predictions"]] == [{"raiFilteredReason"}]
    else:
        assert reply.content == b"{}"
    assert (simulator.job()["state"], simulator.billed()) == ("done", 0)


def test_rai_filtered_silently(simulator: Simulator) -> None:
    simulator.behave(IMAGEN, "rai_filtered_silently")
    simulator.behave(IMAGEN, "rai_filtered_silently", all=True)
    assert len(gemini(simulator, sampleCount=2, includeRaiReason=True).json()["predictions"]) == 1
    assert gemini(simulator, includeRaiReason=True).json() == {}
    assert simulator.billed() == 1


def test_prompt_blocked(simulator: Simulator) -> None:
    simulator.behave(IMAGEN, "prompt_blocked")
    reply = gemini(simulator)
    error = reply.json()["error"]
    assert (reply.status_code, error["status"]) == (400, "INVALID_ARGUMENT")
    assert error["message"].startswith("Image generation failed with the following error: The prompt could not be")
    assert "Error Code: 58061214" in error["message"]
    assert (simulator.job()["state"], simulator.billed()) == ("failed", 0)


def test_rate_limited_429_says_resource_exhausted_and_not_how_long(simulator: Simulator) -> None:
    simulator.behave(IMAGEN, "rate_limited_429")
    reply = gemini(simulator)
    assert (reply.status_code, reply.json()["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert "retry-after" not in reply.headers


def test_api_key_invalid_400(simulator: Simulator) -> None:
    simulator.behave(IMAGEN, "api_key_invalid_400")
    reply = gemini(simulator)
    error = reply.json()["error"]
    assert (reply.status_code, error["status"]) == (400, "INVALID_ARGUMENT")
    assert error["details"][0]["reason"] == "API_KEY_INVALID"
    assert simulator.jobs() == []


@pytest.mark.parametrize("scenario", ["bad_base64", "empty_image", "html_as_image"])
def test_spoilt_pictures_in_base64(simulator: Simulator, scenario: str) -> None:
    simulator.behave(IMAGEN, scenario)
    good, bad = (item["bytesBase64Encoded"] for item in gemini(simulator, sampleCount=2).json()["predictions"])
    opened(base64.b64decode(good, validate=True))
    assert bad == "" or bad.startswith(("@", "PCFET0NUWVBF"))
    assert simulator.billed() == 2


# --- Vertex: tokens


def test_a_service_account_gets_a_token_and_is_counted(simulator: Simulator) -> None:
    register(simulator)
    for audience in (AUDIENCE, f"{simulator.url}/vertex/token"):
        reply = token_reply(simulator, assertion(aud=audience))
        assert reply.status_code == 200
        assert set(reply.json()) == {"access_token", "expires_in", "token_type"}
        assert (reply.json()["expires_in"], reply.json()["token_type"]) == (3600, "Bearer")
    assert state(simulator) == {
        "client_email": EMAIL,
        "lifetime_s": 3600,
        "token_requests": 2,
        "tokens_granted": 2,
    }


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"iss": "somebody@else.example"}, "invalid_grant"),
        ({"iss": None}, "invalid_grant"),
        ({"aud": "https://elsewhere.example/token"}, "invalid_grant"),
        ({"aud": None}, "invalid_grant"),
        ({"iat": None}, "invalid_grant"),
        ({"exp": None}, "invalid_grant"),
        ({"exp": int(time.time()) + 100_000}, "invalid_grant"),
        ({"iat": int(time.time()) - 7200, "exp": int(time.time()) - 3600}, "invalid_grant"),
        ({"iat": int(time.time()) + 100_000}, "invalid_grant"),
        ({"scope": None}, "invalid_grant"),
        ({"scope": "https://www.googleapis.com/auth/drive"}, "invalid_scope"),
        ({"scope": ["a"]}, "invalid_scope"),
    ],
)
def test_an_assertion_that_claims_something_else_gets_no_token(
    simulator: Simulator, claims: dict[str, Any], code: str
) -> None:
    register(simulator)
    reply = token_reply(simulator, assertion(**claims))
    assert (reply.status_code, reply.json()["error"]) == (400, code)
    assert (state(simulator)["token_requests"], state(simulator)["tokens_granted"]) == (1, 0)


def test_an_assertion_must_be_signed_by_the_account_with_rs256(simulator: Simulator) -> None:
    register(simulator)
    unsigned = jwt.encode({"iss": EMAIL, "scope": SCOPE, "aud": AUDIENCE}, "", "none")
    for signed in (assertion(OTHER_KEY), assertion(algorithm="RS512"), unsigned, "x.y.z", ""):
        assert token_reply(simulator, signed).json()["error"] == "invalid_grant"
    assert token_reply(simulator, assertion(), "password").json()["error"] == "unsupported_grant_type"
    register(simulator, client_email="nobody@geekhub.example")
    assert token_reply(simulator, assertion()).json()["error"] == "invalid_grant"
    register(simulator, public_key="no key")
    assert token_reply(simulator, assertion()).json()["error"] == "invalid_grant"


def test_a_token_ends_with_its_lifetime(simulator: Simulator) -> None:
    short = granted(simulator, lifetime_s=0)
    reply = vertex(simulator, short)
    assert (reply.status_code, reply.json()["error"]["status"]) == (401, "UNAUTHENTICATED")
    assert vertex(simulator, granted(simulator)).status_code == 200


def test_another_account_makes_all_tokens_void(simulator: Simulator) -> None:
    token = granted(simulator)
    assert vertex(simulator, token).status_code == 200
    register(simulator)
    assert vertex(simulator, token).status_code == 401
    assert state(simulator)["token_requests"] == 0


@pytest.mark.parametrize(
    "wish",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"client_email": "a@b"}',
        b'{"client_email": 7, "public_key": "x"}',
        b'{"client_email": "a@b", "public_key": "x", "lifetime_s": -1}',
        b'{"client_email": "a@b", "public_key": "x", "when": 1}',
    ],
)
def test_an_account_that_makes_no_sense_is_refused_with_a_sentence(simulator: Simulator, wish: bytes) -> None:
    reply = simulator.http.put(f"{simulator.url}/_sim/vertex", content=wish)
    assert (reply.status_code, reply.json()["error"][-1]) == (400, ".")


# --- Vertex: Imagen


def test_vertex_wants_a_token_that_it_gave(simulator: Simulator) -> None:
    register(simulator)
    assert vertex(simulator, "ya29.invented").status_code == 401
    assert simulator.http.post(simulator.url + VERTEX_PATH, headers=GOOGLE_AUTH, json={}).status_code == 401
    assert simulator.jobs() == []


def test_vertex_takes_what_the_gemini_api_refuses(simulator: Simulator) -> None:
    token = granted(simulator)
    order = {
        "negativePrompt": "rain",
        "addWatermark": False,
        "seed": 7,
        "personGeneration": "allow_all",
        "safetySetting": "block_none",
        "enhancePrompt": True,
    }
    first, again = (vertex(simulator, token, {"team": "images"}, **order).json() for _ in range(2))
    assert first == again
    assert "un faro" in first["predictions"][0]["prompt"]
    assert simulator.jobs()[0]["upstream_path"] == VERTEX_PATH
    refused = vertex(simulator, token, seed=7)
    assert (refused.status_code, "addWatermark" in refused.json()["error"]["message"]) == (400, True)
    assert vertex(simulator, token, labels=["images"]).status_code == 400


def test_vertex_writes_to_a_bucket_if_told_to(simulator: Simulator) -> None:
    reply = vertex(simulator, granted(simulator), sampleCount=2, storageUri="gs://bucket/folder/")
    items = reply.json()["predictions"]
    assert [set(item) for item in items] == [{"gcsUri", "mimeType"}] * 2
    assert items[1]["gcsUri"].startswith("gs://bucket/folder/") and items[1]["gcsUri"].endswith("/sample_1.png")


def test_express_mode_takes_an_api_key_and_names_no_project(simulator: Simulator) -> None:
    body = {"instances": [{"prompt": "un faro"}], "parameters": {"sampleCount": 1, "addWatermark": True}}
    url = simulator.url + EXPRESS_PATH
    assert simulator.http.post(url, headers=GOOGLE_AUTH, json=body).status_code == 200
    assert simulator.http.post(url, json=body).status_code == 403


# --- Google's own client


def clients(simulator: Simulator) -> dict[str, genai.Client]:
    info = {"client_email": EMAIL, "private_key": private_pem(KEY), "token_uri": f"{simulator.url}/vertex/token"}
    credentials = service_account.Credentials.from_service_account_info(info, scopes=[SCOPE])
    options = types.HttpOptions(base_url=f"{simulator.url}/vertex", api_version="v1")
    gemini_options = types.HttpOptions(base_url=f"{simulator.url}/google", api_version="v1beta")
    return {
        "vertex": genai.Client(
            vertexai=True,
            project="geekhub",
            location="us-central1",
            credentials=credentials,
            http_options=options,
        ),
        "express": genai.Client(vertexai=True, api_key="AIza-simulated", http_options=options),
        "gemini": genai.Client(api_key="AIza-simulated", http_options=gemini_options),
    }


def generate(client: genai.Client, **config: Any) -> types.GenerateImagesResponse:
    with warnings.catch_warnings():
        # The method announces its own end, once in a process.
        warnings.filterwarnings("ignore", "The generate_images method is deprecated")
        wanted = types.GenerateImagesConfig(**config)
        reply: types.GenerateImagesResponse = client.models.generate_images(
            model=UPSTREAM, prompt="un faro", config=wanted
        )
        return reply


@pytest.mark.parametrize("mode", ["vertex", "express"])
def test_the_official_google_client_accepts_imagen_on_vertex(simulator: Simulator, mode: str) -> None:
    register(simulator)
    client = clients(simulator)[mode]
    reply = generate(
        client,
        number_of_images=2,
        aspect_ratio="16:9",
        output_mime_type="image/jpeg",
        output_compression_quality=80,
        include_rai_reason=True,
        safety_filter_level=types.SafetyFilterLevel.BLOCK_MEDIUM_AND_ABOVE,
        person_generation=types.PersonGeneration.ALLOW_ADULT,
    )
    assert reply.generated_images is not None
    for item in reply.generated_images:
        assert item.image is not None and item.image.image_bytes is not None
        assert item.image.mime_type == "image/jpeg"
        assert opened(item.image.image_bytes).size == (1408, 768)
    assert simulator.job()["upstream_path"] == (VERTEX_PATH if mode == "vertex" else EXPRESS_PATH)

    simulator.behave(IMAGEN, "rai_filtered", last=2)
    some = generate(client, number_of_images=4, include_rai_reason=True).generated_images
    assert some is not None
    assert [bool(item.rai_filtered_reason) for item in some] == [False, False, True]
    simulator.behave(IMAGEN, "rai_filtered", all=True)
    assert generate(client, number_of_images=4).generated_images is None
    for scenario, code, status in [
        ("prompt_blocked", 400, "INVALID_ARGUMENT"),
        ("rate_limited_429", 429, "RESOURCE_EXHAUSTED"),
        ("unauthorized_401", 401, "UNAUTHENTICATED"),
        ("retired", 404, "NOT_FOUND"),
        ("http_500", 500, "INTERNAL"),
        ("http_503", 503, "UNAVAILABLE"),
    ]:
        simulator.behave(IMAGEN, scenario)
        with pytest.raises(errors.APIError) as failure:
            generate(client)
        assert (failure.value.code, failure.value.status) == (code, status)
    # Google's own library signed the assertion, and one token was enough.
    assert state(simulator)["token_requests"] == state(simulator)["tokens_granted"] == (mode == "vertex")


def test_the_official_google_client_renews_a_token_that_runs_out(simulator: Simulator) -> None:
    register(simulator, lifetime_s=60)  # shorter than the margin that the client keeps
    client = clients(simulator)["vertex"]
    for _ in range(2):
        generate(client, number_of_images=1)
    assert state(simulator)["tokens_granted"] >= 2


def test_the_official_google_client_no_longer_offers_imagen_on_the_gemini_api(simulator: Simulator) -> None:
    """Its method refuses before it sends anything; its transport, asked for the same request, is answered."""
    client = clients(simulator)["gemini"]
    with pytest.raises(ValueError, match="not in Gemini Developer API mode"):
        generate(client)
    assert simulator.jobs() == []
    order: dict[str, object] = {"instances": [{"prompt": "un faro"}], "parameters": {"sampleCount": 2}}
    reply = client._api_client.request("post", f"models/{UPSTREAM}:predict", order)
    assert isinstance(reply.body, str)
    assert reply.body.count('"bytesBase64Encoded"') == 2
    assert simulator.job()["upstream_path"] == GOOGLE_PATH
    simulator.behave(IMAGEN, "retired")
    with pytest.raises(errors.ClientError) as gone:
        client._api_client.request("post", f"models/{UPSTREAM}:predict", order)
    assert (gone.value.code, gone.value.status) == (404, "NOT_FOUND")
