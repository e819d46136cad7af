"""GIF: a screen, then extensions and images, each in sub-blocks of up to 255 bytes, and a trailer. GIF89a."""

from proxy.media.formats import NotAnImage
from proxy.media.reader import Reader, Reading

EXTENSION, IMAGE, TRAILER = 0x21, 0x2C, 0x3B


def walk(image: Reader) -> Reading[None]:
    """Check up to the end of the trailer."""
    screen = yield from image.take(13)
    image.sides(int.from_bytes(screen[6:8], "little"), int.from_bytes(screen[8:10], "little"))
    _skip_colours(image, screen[10])
    pictured = False
    while (kind := (yield from image.take(1))[0]) != TRAILER:
        image.part()
        if kind == EXTENSION:
            image.skip(1)
            yield from image.skip_blocks()
        elif kind == IMAGE:
            pictured |= yield from _picture(image)
        else:
            raise NotAnImage("GIF: a block of no known kind")
    if not pictured:
        raise NotAnImage("GIF: no pixels")


def _picture(image: Reader) -> Reading[bool]:
    """Check one image of an animation, or the only one; False if it is empty."""
    head = yield from image.take(9)
    image.check_sides(int.from_bytes(head[4:6], "little"), int.from_bytes(head[6:8], "little"))
    _skip_colours(image, head[8])
    image.skip(1)
    return (yield from image.skip_blocks())


def _skip_colours(image: Reader, flags: int) -> None:
    """Skip a table of 2 to 256 colours, if there is one."""
    if flags & 0x80:
        image.skip(3 * 2 ** ((flags & 7) + 1))
