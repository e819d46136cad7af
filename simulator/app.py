"""One application for all upstreams: a new provider is its module, and its place here."""

from starlette.applications import Starlette

from simulator import behaviour, control, fal, google, openai, xai
from simulator.latency import Latency
from simulator.world import World

PROVIDERS = (openai, google, xai, fal)
"""Each module has a `NAME`, its `ADDRESSES` by the names of the addresses that a client sets, its `SCENARIOS` and
`LATENCY_S`."""


def make_world(latency_scale: float = 1.0, seed: int = 0) -> World:
    """Make the state.

    `latency_scale` multiplies the published latencies, 0 is instant; ValueError if it is negative.
    """
    scenarios = {
        model: behaviour.SCENARIOS | own for provider in PROVIDERS for model, own in provider.SCENARIOS.items()
    }
    latencies = {model: p50_p95 for provider in PROVIDERS for model, p50_p95 in provider.LATENCY_S.items()}
    return World(scenarios, Latency(latencies, latency_scale, seed), seed)


def make_app(world: World) -> Starlette:
    """Build /openai, /google, /vertex, /xai, /fal/run, /fal/queue, /files and /_sim."""
    providers = [route for provider in PROVIDERS for route in provider.routes(world)]
    return Starlette(routes=[*providers, *world.files.routes(), *control.routes(world)])
