"""The facts that the sample's texts are made of."""

from collections import Counter
from itertools import islice
from random import Random

import pytest
from conan_embedding.pipeline.demo import world


@pytest.mark.parametrize("held_out", [False, True])
def test_no_two_facts_ask_the_same(held_out: bool) -> None:
    facts = list(islice(world.facts(Random(0), held_out), 1000))
    words = [fact.words for fact in facts]
    assert len({(one["entity"], one["change"], one["place"], one["year"]) for one in words}) == 1000
    assert len({(f.words["entity"], f.words["change"], f.words["cause"], f.remedy) for f in facts}) == 1000


def test_facts_come_in_twos_that_only_the_year_tells_apart() -> None:
    words = [fact.words for fact in islice(world.facts(Random(0)), 1000)]
    alike = Counter((one["entity"], one["change"], one["place"], one["time"]) for one in words)
    assert sum(count > 1 for count in alike.values()) > 400


def test_near_misses_differ_in_one_word_that_questions_name() -> None:
    told = list(islice(world.facts(Random(0), held_out=True), 120))
    missed = world.near_misses(Random(0), told, each=2)
    named = ("entity", "change", "place", "year")
    asked = [tuple(fact.words[slot] for slot in named) for fact in told + missed]
    assert len(set(asked)) == 360
    differing = Counter()
    for number, fact in enumerate(missed):
        original = told[number // 2]
        (slot,) = (slot for slot in named if fact.words[slot] != original.words[slot])
        differing[slot] += 1
        assert fact.words["time"] == original.words["time"]
        assert fact.words["cause"] != original.words["cause"]
        assert world.is_held_out(fact)
    assert min(differing.values()) > 40
