"""How long a generation takes: the published P50 and P95 of each model, as a lognormal distribution."""

import math
import random

# Seconds, (P50, P95).
PUBLISHED_S = {
    "openai/gpt-image-1": (15.0, 45.0),
    "fal/flux-1.1-pro": (7.0, 25.0),
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
