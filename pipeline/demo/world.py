"""Facts of the sample's small world, and the sentences that tell them.

A fact is a topic's entity that changes, somewhere, at some time, for a cause. Queries and passages word it
differently, so a model that is trained on the sample learns something that can be measured on combinations of
entity and place that it has never seen.
"""

from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from .words import CAUSES, DETAILS, OPENINGS, PLACES, QUERIES, REMEDIES, STATEMENTS, TIMES, TOPICS, Topic, Word

# A passage words a meaning differently from its query about two times in three.
TOLD_SHARE = 0.65
# One in six combinations of entity and place is never in a training file, only in the evaluation.
HELD_OUT_EVERY = 6


class Fact(NamedTuple):
    """One thing that happened, with a word for each of the slots entity, change, cause, place and time."""

    topic: Topic
    words: dict[str, Word]
    remedy: str


ENTITIES = [entity for topic in TOPICS for entity in topic.entities]


def choices(topic: Topic) -> dict[str, list[Word]]:
    """The words that can stand in each slot of a topic's facts."""
    return {
        "entity": topic.entities,
        "change": topic.changes,
        "cause": topic.causes,
        "place": PLACES,
        "time": TIMES,
    }


def is_held_out(fact: Fact) -> bool:
    """Whether a combination of entity and place is kept for the evaluation; neither word alone ever is."""
    numbers = ENTITIES.index(fact.words["entity"]), PLACES.index(fact.words["place"])
    return sum(numbers) % HELD_OUT_EVERY == 0


def draw(rng: Random, held_out: bool = False) -> Fact:
    """Draws a fact from the world's training part, or from its held-out part."""
    while True:
        topic = rng.choice(TOPICS)
        words = {slot: rng.choice(options) for slot, options in choices(topic).items()}
        fact = Fact(topic, words, rng.choice(topic.remedies))
        if is_held_out(fact) == held_out:
            return fact


def facts(rng: Random, held_out: bool = False) -> Iterator[Fact]:
    """Draws facts of which no two have the same query or nearly the same passage."""
    seen: set[tuple[object, ...]] = set()
    while True:
        fact = draw(rng, held_out)
        entity, change, cause, place, _ = fact.words.values()
        keys = {(entity, change, place), (entity, change, cause, fact.remedy)}
        if seen.isdisjoint(keys):
            seen |= keys
            yield fact


def neighbour(rng: Random, fact: Fact, slot: str) -> Fact:
    """Draws another training fact with the same place, or with the same entity."""
    while True:
        other = draw(rng)
        if [name for name in ("entity", "place") if other.words[name] == fact.words[name]] == [slot]:
            return other


def variation(rng: Random, fact: Fact, shared: int) -> Fact:
    """Replaces all but `shared` of the five slots, within the topic and the fact's part of the world."""
    options = choices(fact.topic)
    while True:
        replaced = rng.sample(list(options), len(options) - shared)
        words = {slot: rng.choice([word for word in options[slot] if word != fact.words[slot]]) for slot in replaced}
        other = fact._replace(words=fact.words | words)
        if is_held_out(other) == is_held_out(fact):
            return other


def fill(template: str, fact: Fact, wording: Callable[[Word], str], number: int = 0) -> str:
    """Fills a template's slots with one wording of the fact's words."""
    words = {slot: wording(word) for slot, word in fact.words.items()}
    return template.format(**words, office=fact.topic.office, remedy=fact.remedy, number=number)


def asked(word: Word) -> str:
    """The wording of queries."""
    return word.asked


def mixed(rng: Random) -> Callable[[Word], str]:
    """The wording of passages: mostly `told`."""
    return lambda word: word.told if rng.random() < TOLD_SHARE else word.asked


def query(rng: Random, fact: Fact, style: str) -> str:
    """A title, question, instruction or topic of 8 to 30 characters."""
    return fill(rng.choice(QUERIES[style]), fact, asked)


def passage(rng: Random, fact: Fact, style: str) -> str:
    """A text of 60 to 250 characters: what happened, then why, what is done and a detail in any order."""
    rest = [rng.choice(CAUSES), rng.choice(REMEDIES), rng.choice(DETAILS)]
    rng.shuffle(rest)
    return fill("".join([rng.choice(OPENINGS[style]), *rest]), fact, mixed(rng), rng.randint(2, 99))


def statement_pair(rng: Random, held_out: bool) -> tuple[str, str, int]:
    """Two sentences and their score: how many of five slots they share."""
    score = rng.randint(0, 5)
    fact = draw(rng, held_out)
    other = variation(rng, fact, score)
    first = fill(rng.choice(STATEMENTS), fact, asked)
    second = fill(rng.choice(STATEMENTS), other, mixed(rng))
    return first, second, score
