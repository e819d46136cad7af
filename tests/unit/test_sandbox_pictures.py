"""The sandbox's pictures are whole, of the size that was asked for, and labelled."""

import io
import random
import string

import pytest
from PIL import Image

from config.catalogue import read_catalogue
from proxy.media.formats import PNG, sniff
from proxy.media.proof import Proof
from proxy.ports import Order
from proxy.providers.sandbox import EXCERPT_CHARACTERS, draw, excerpt, pictures

CATALOGUE = read_catalogue(None)
EVERY = [(name, size) for name, model in CATALOGUE.models.items() for size in model.sizes]
FLUX = "fal/flux-1.1-pro"


def order(model: str = FLUX, size: str = "1024x1024", n: int = 1, prompt: str = "Un axolotl en Xochimilco") -> Order:
    return Order(model, CATALOGUE.models[model], prompt, n, size, None)


def decoded(png: bytes) -> Image.Image:
    """Every pixel, by another's decoder."""
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert image.format == "PNG"
        return image.convert("RGB")


def prove(png: bytes) -> tuple[int, int]:
    """By the proof that every picture of a provider has to stand; returns its sides."""
    assert sniff(png) is PNG
    proof = Proof(PNG, 16_384)
    proof.feed(png)
    proof.finish()
    return proof.width_px, proof.height_px


@pytest.mark.parametrize(("model", "size"), EVERY)
def test_a_picture_of_every_size_that_is_offered_is_whole(model: str, size: str) -> None:
    """For our proof and for Pillow, whatever the prompt; it is small, and has a label in it."""
    png = draw(order(model, size, 8, "¿Qué?"), 7)
    image = decoded(png)
    assert prove(png) == image.size == tuple(map(int, size.split("x")))
    assert len(png) < 100_000
    assert len(image.getcolors() or []) == 4


def test_a_picture_of_any_sides_is_whole() -> None:
    """From one pixel to what no model offers; a size that is no sides is a square."""
    chance = random.Random(6)
    sides = [(1, 1), (1, 500), (500, 1), (127, 129)]
    sides += [(chance.randint(1, 700), chance.randint(1, 700)) for _ in range(60)]
    for width, height in sides:
        png = draw(order(size=f"{width}x{height}", prompt="x" * chance.randint(0, 50)), 0)
        assert decoded(png).size == (width, height) == prove(png)
    assert decoded(draw(order(size="2K"), 0)).size == (1024, 1024)


def test_the_same_order_has_the_same_picture_and_any_other_has_another() -> None:
    """Model, size, prompt, n and the image's number make it, and nothing else."""
    same = draw(order(n=8), 0)
    assert draw(order(n=8), 0) == same
    others = [draw(order(n=8), number) for number in range(1, 8)]
    others += [draw(order(n=7), 0), draw(order(n=8, prompt="otro"), 0), draw(order(n=8, size="1440x960"), 0)]
    others += [draw(order("fal/sd-3.5-large", n=8), 0)]
    assert len({same, *others}) == 1 + len(others)


def test_the_label_is_read_off_the_picture() -> None:
    """SANDBOX stands in it in large letters: seven by 41 dots, each of them a square of one colour."""
    image = decoded(draw(order(prompt="x"), 0))
    rows = [
        [x for x in range(image.width) if image.getpixel((x, y)) == (0xF5, 0xF7, 0xFA)] for y in range(image.height)
    ]
    first = next(y for y, row in enumerate(rows) if row)
    left, dot = rows[first][0] - 21, 21  # an S begins with a dot of paper
    art = [
        "".join("#" if left + dot * x + dot // 2 in rows[first + dot * y + dot // 2] else "." for x in range(41))
        for y in range(7)
    ]
    assert art == [
        ".####..###..#...#.####..####...###..#...#",
        "#.....#...#.#...#.#...#.#...#.#...#.#...#",
        "#.....#...#.##..#.#...#.#...#.#...#..#.#.",
        ".###..#####.#.#.#.#...#.####..#...#...#..",
        "....#.#...#.#..##.#...#.#...#.#...#..#.#.",
        "....#.#...#.#...#.#...#.#...#.#...#.#...#",
        "####..#...#.#...#.####..####...###..#...#",
    ]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("Un faro", "UN FARO"),
        ("¿Qué\nniño,\tpingüino?", "QUE NINO, PINGUINO?"),
        ("灯台", ""),
        ("a" * EXCERPT_CHARACTERS, "A" * EXCERPT_CHARACTERS),
        ("a" * 4000, "A" * (EXCERPT_CHARACTERS - 3) + "..."),
        ("straße {x} #1", "STRASSE X 1"),
    ],
)
def test_the_beginning_of_the_prompt_is_in_it_and_never_all_of_a_long_one(prompt: str, words: str) -> None:
    """As much as the font allows."""
    assert excerpt(prompt) == words


def test_every_prompt_can_be_drawn() -> None:
    """Whatever characters are in it."""
    chance = random.Random(7)
    for _ in range(100):
        prompt = "".join(chr(chance.randrange(1, 0xD800)) for _ in range(20)) + chance.choice(string.printable)
        decoded(draw(order(size="512x512", prompt=prompt), 0))


async def test_the_pieces_of_a_picture_are_the_picture() -> None:
    """In the form that the store gets, with the announced length, and as often as they are read."""
    for number, picture in enumerate(pictures(order(n=3))):
        for _ in range(2):
            async with picture.open() as source:
                png = b"".join([piece async for piece in source.chunks])
            assert (picture.index, len(png), png) == (number, source.size_bytes, draw(order(n=3), number))
