"""Records to mine."""

from random import Random

import pytest
from mined_pools import HAN, ORIGIN


def phrase(dice: Random) -> str:
    return "".join(dice.choices(HAN, k=dice.randint(1, 6)))


@pytest.fixture(scope="module")
def records() -> list[dict]:
    """Make queries with one to three positives from clusters of three passages; some texts are in two clusters."""
    dice = Random(5)
    clusters = [[phrase(dice) for _ in range(3)] for _ in range(60)]
    for number in range(0, 60, 6):
        clusters[number].append(clusters[number + 1][0])
    made = []
    for number in range(150):
        chosen = dice.sample(range(60), dice.randint(1, 3))
        positives = [dice.choice(clusters[cluster]) for cluster in chosen]
        record = {"pair_ids": [str(number)], "query": f"{phrase(dice)}{number}", "negatives": []}
        made.append(ORIGIN | record | {"positives": positives, "cluster_ids": [100 + cluster for cluster in chosen]})
    missing = [(text, 100 + number) for number, cluster in enumerate(clusters) for text in cluster]
    for number, (text, cluster) in enumerate(missing):
        record = {"pair_ids": [f"m{number}"], "query": f"补{number % 40}", "negatives": []}
        made.append(ORIGIN | record | {"positives": [text], "cluster_ids": [cluster]})
    return made
