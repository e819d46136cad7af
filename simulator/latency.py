"""The time a generation takes: the published P50 and P95 of a model, or of its quality, as a lognormal distribution."""

import math
import random
from collections.abc import Mapping

Z95 = 1.6449  # the standard normal's 95th percentile


class Latency:
    """Draws generation times. The same seed gives each model the same sequence, independent of other models."""

    def __init__(self, published_s: Mapping[str, tuple[float, float]], scale: float, seed: int) -> None:
        """`published_s`: P50 and P95 of each model, and of a `model/quality` that has its own. `scale` multiplies every
        time: 1 is as published, 0 is instant.
        """
        if not 0 <= scale < math.inf:
            raise ValueError(f"latency scale must be 0 or more, got {scale}")
        self._published_s = published_s
        self._scale = scale
        self._draws = {model: random.Random(f"{seed} {model}") for model in published_s}

    def draw_s(self, model: str, quality: str = "") -> float:
        """Seconds for the next generation of `model`, a public id. KeyError for a model without figures."""
        own = f"{model}/{quality}"
        name = own if own in self._published_s else model
        p50, p95 = self._published_s[name]
        return self._scale * self._draws[name].lognormvariate(math.log(p50), math.log(p95 / p50) / Z95)
