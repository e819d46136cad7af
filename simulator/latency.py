"""How long a generation takes: the published P50 and P95 of each model, as a lognormal distribution."""

import math
import random

# Seconds, (P50, P95). Successors without figures of their own have their predecessor's.
PUBLISHED_S = {
    "openai/gpt-image-1": (15.0, 45.0),
    "openai/dall-e-3": (8.0, 20.0),
    "google/imagen-4": (6.0, 18.0),
    "xai/grok-2-image": (10.0, 30.0),
    "xai/grok-imagine-image": (10.0, 30.0),
    "fal/flux-1.1-pro": (7.0, 25.0),
    "fal/flux-1.1-pro-ultra": (12.0, 40.0),
    "fal/recraft-v3": (8.0, 28.0),
    "fal/recraft-v4.1": (8.0, 28.0),
    "fal/recraft-v4.1-pro": (8.0, 28.0),
    "fal/ideogram-v2": (12.0, 35.0),
    "fal/ideogram-v4": (12.0, 35.0),
    "fal/sd-3.5-large": (10.0, 30.0),
}
Z95 = 1.6449  # the standard normal's 95th percentile


class Latency:
    """Draws generation times. The same seed gives each model the same sequence, whatever the others do."""

    def __init__(self, scale: float, seed: int) -> None:
        """`scale` multiplies every time: 1 is as published, 0 is instant."""
        if not 0 <= scale < math.inf:
            raise ValueError(f"latency scale must be 0 or more, got {scale}")
        self._scale = scale
        self._draws = {model: random.Random(f"{seed} {model}") for model in PUBLISHED_S}

    def draw_s(self, model: str) -> float:
        """Seconds for the next generation of `model`, a public id. KeyError for a model without figures."""
        p50, p95 = PUBLISHED_S[model]
        return self._scale * self._draws[model].lognormvariate(math.log(p50), math.log(p95 / p50) / Z95)
