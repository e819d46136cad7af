"""Base64 pictures in a reply, and their failures."""

import base64

from simulator.behaviour import Play
from simulator.files import HTML
from simulator.pictures import Picture
from simulator.world import World

# Each changes the last image of a reply, `last` of them, or every one with `all`.
SCENARIOS = {
    "bad_base64": "The last image, or with `all` every one, is no base64. Billed.",
    "empty_image": "The last image, or with `all` every one, is an empty string. Billed.",
    "html_as_image": "The last image, or with `all` every one, is a page of HTML in base64. Billed.",
}


async def encoded(world: World, play: Play, struck: bool, picture: Picture) -> bytes:
    """Encode the picture in base64, broken if `struck` and the scenario says so."""
    if struck:
        match play.scenario:
            case "bad_base64":
                return b"@@@@ this is no base64 @@@@"
            case "empty_image":
                return b""
            case "html_as_image":
                return base64.b64encode(HTML)
    return (await world.studio.draw(picture, keep=play.same)).base64
