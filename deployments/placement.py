"""Which replica a request goes to: rendezvous hashing, bounded by load and by what loading an adapter costs. Pure; others ask it.

Each key (an adapter's version, or the beginning of a base model's prompt) ranks the replicas by a hash of both, and lives on the first,
its home, where it is loaded once and its prefixes are cached. A request goes where it costs least:

    what runs there already, beyond what an engine batches for nothing
    + elsewhere than at home, unless requests of the key run there: a load, shared among all the requests that would use it

So a cool key leaves its home only when that is far busier than others: its neighbours being hot does not drive it out. A hot one, whose
load is soon paid for, spreads to its second and third choice, is then served wherever it is least busy, and shrinks back as its requests
end. Every gateway computes the same ranking without a word to the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

BATCH = 8  # requests at once that an engine batches for nearly the price of one: below it nothing is spread
LOAD_COST = 4 * BATCH  # a load, in requests that run beside: so much busier must a home be before a key that nobody else asks for leaves it
UNKNOWN_HEAT = BATCH  # requests of a key in flight, where nobody has counted them


def ranking(key: bytes, replicas: Sequence[str]) -> list[int]:
    """Indices of `replicas` (their ids) in the order in which `key` prefers them."""
    seed = blake2b(key, digest_size=16).digest()
    weights = [blake2b(replica.encode(), key=seed, digest_size=8).digest() for replica in replicas]
    return sorted(range(len(replicas)), key=weights.__getitem__)


def placed(key: bytes, replicas: Sequence[str], loads: Sequence[int], same: Sequence[int] | None = None) -> list[int]:
    """Indices of `replicas` in the order in which to try them: the cheapest first, and of equals as `key` ranks them.

    `loads` are the requests that each replica has now, `same` those of them that have this key; None where nobody has counted them.
    """
    order = ranking(key, replicas)
    heat = sum(same) if same is not None else UNKNOWN_HEAT
    load_cost = max(LOAD_COST, sum(loads) / len(loads)) / (1 + heat)

    def cost(index: int) -> float:
        there = index == order[0] or (same is not None and same[index] > 0)
        return max(loads[index], BATCH - 1) + (0 if there else load_cost)

    return sorted(order, key=cost)
