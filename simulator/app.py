"""One application for all upstreams: a new provider is its module here and its rows in `latency`."""

from starlette.applications import Starlette

from simulator import behaviour, control, fal, google, openai, xai
from simulator.world import World

PROVIDERS = (openai, google, xai, fal)


def make_world(latency_scale: float = 1.0, seed: int = 0) -> World:
    """`latency_scale` multiplies the published latencies, 0 is instant; ValueError if it is negative."""
    scenarios = {
        model: behaviour.SCENARIOS | own for provider in PROVIDERS for model, own in provider.SCENARIOS.items()
    }
    return World(scenarios, latency_scale, seed)


def make_app(world: World) -> Starlette:
    """/openai, /google, /vertex, /xai, /fal/run, /fal/queue, /files and /_sim."""
    providers = [route for provider in PROVIDERS for route in provider.routes(world)]
    return Starlette(routes=[*providers, *world.files.routes(), *control.routes(world)])
