"""One application for all upstreams: a new provider is its module here and its rows in `latency`."""

from starlette.applications import Starlette

from proxy.simulator import behaviour, control, fal, openai
from proxy.simulator.world import World

PROVIDERS = (openai, fal)


def make_world(latency_scale: float = 1.0, seed: int = 0) -> World:
    """`latency_scale` multiplies the published latencies, 0 is instant; ValueError if it is negative."""
    scenarios = {model: behaviour.SCENARIOS | provider.SCENARIOS for provider in PROVIDERS for model in provider.MODELS}
    return World(scenarios, latency_scale, seed)


def make_app(world: World) -> Starlette:
    """/openai, /fal/run, /fal/queue, /files and /_sim."""
    providers = [route for provider in PROVIDERS for route in provider.routes(world)]
    return Starlette(routes=[*providers, *world.files.routes(), *control.routes(world)])
