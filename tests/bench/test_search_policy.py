"""The bench of the parent policy: the same table for the same seeds, on landscapes where structure and knobs matter."""

import random

from bench.search_policy import KNOBS, PICKS, Genome, Landscape, child, search, table


def test_table_is_the_same_every_time() -> None:
    first = table(evals=8, seeds=3)
    assert first == table(evals=8, seeds=3)
    assert first.count("\n") == 3 + len(PICKS)


def test_nothing_lies_above_the_highest_peak() -> None:
    landscape, rng = Landscape(1), random.Random(1)
    genome = Genome(0, 0, (0,) * KNOBS)
    for _ in range(200):
        genome = child(genome, rng)
        assert landscape.score(genome) <= landscape.highest
    best = max(landscape.peaks, key=landscape.peaks.__getitem__)
    assert landscape.score(Genome(*best, tuple(landscape.tuned[best]))) == landscape.highest


def test_longer_search_comes_nearer_on_the_whole() -> None:
    pick = PICKS["policy, one island"]
    short, long = (sum(search(Landscape(seed), pick, evals, seed) for seed in range(8)) for evals in (4, 40))
    assert long < short
