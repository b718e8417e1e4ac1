"""Who is asked for: a seeded run of adapters whose popularity follows Zipf's law, the same for every policy."""

from __future__ import annotations

import random

ADAPTERS = 200
EXPONENT = 1.1


def zipf(count: int, *, seed: int, adapters: int = ADAPTERS, exponent: float = EXPONENT) -> list[int]:
    """`count` adapters by their index. Which of them are popular is drawn too, so that no round has the same ones near one another."""
    random_ = random.Random(seed)
    ranked = list(range(adapters))
    random_.shuffle(ranked)
    return random_.choices(ranked, [1 / place**exponent for place in range(1, adapters + 1)], k=count)


def least_loads(held: int, *, adapters: int = ADAPTERS, exponent: float = EXPONENT) -> float:
    """Loads per 1,000 requests with the `held` most popular adapters always loaded: about what a policy without foresight can reach."""
    weights = [1 / place**exponent for place in range(1, adapters + 1)]
    return 1e3 * sum(weights[held:]) / sum(weights)
