"""Facts of the sample's small world, and the sentences that state them.

A fact says that an entity of a topic changed, at some place and time, for some cause. Queries and passages use
different words for it, so a model that is trained on the sample can be evaluated on combinations of entity and place
that it has never seen.
"""

from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import NamedTuple

from .words import CAUSES, DETAILS, OPENINGS, PLACES, QUERIES, REMEDIES, STATEMENTS, TIMES, TOPICS, YEARS, Topic, Word

# The probability that a word of a passage has another wording than in queries.
TOLD_SHARE = 0.65
# One in six combinations of topic and place appears only in the evaluation sets.
HELD_OUT_EVERY = 6
# Sentence pairs state these.
STATED_SLOTS = ("entity", "change", "cause", "place", "time")
# Every query names these; together they identify a fact.
ASKED_SLOTS = ("entity", "change", "place", "year")


class Fact(NamedTuple):
    """An event, with a word for each of the slots entity, change, cause, place, time and year."""

    topic: Topic
    words: dict[str, Word]
    remedy: str


ENTITIES = [entity for topic in TOPICS for entity in topic.entities]


def choices(topic: Topic) -> dict[str, list[Word]]:
    """Return the words that can fill each slot in facts of a topic."""
    return {
        "entity": topic.entities,
        "change": topic.changes,
        "cause": topic.causes,
        "place": PLACES,
        "time": TIMES,
        "year": YEARS,
    }


def is_held_out(fact: Fact) -> bool:
    """Whether the combination of topic and place is held out for evaluation; every single word is in training."""
    return (TOPICS.index(fact.topic) + PLACES.index(fact.words["place"])) % HELD_OUT_EVERY == 0


def draw(rng: Random, held_out: bool = False) -> Fact:
    """Draw a fact, either one for training or a held-out one."""
    while True:
        topic = rng.choice(TOPICS)
        words = {slot: rng.choice(options) for slot, options in choices(topic).items()}
        fact = Fact(topic, words, rng.choice(topic.remedies))
        if is_held_out(fact) == held_out:
            return fact


def facts(rng: Random, held_out: bool = False) -> Iterator[Fact]:
    """Draw facts in twos, which differ in year and cause; no two have the same query or nearly the same passage.

    Random negatives don't teach an encoder to look at the year, for among them the other words suffice.
    """
    seen: set[tuple[object, ...]] = set()
    while True:
        fact = draw(rng, held_out)
        for told in (fact, variation(rng, fact, ["year", "cause"])):
            entity, change, cause, place, _, year = told.words.values()
            keys = {(entity, change, place, year), (entity, change, cause, told.remedy)}
            if seen.isdisjoint(keys):
                seen |= keys
                yield told


def near_misses(rng: Random, asked_about: list[Fact], each: int) -> list[Fact]:
    """Draw `each` facts per fact that differ from it in entity, change or place, and in the cause.

    Questions name the first three, so none of these facts answers a question about another.
    """

    def asks(fact: Fact) -> tuple[Word, ...]:
        return tuple(fact.words[slot] for slot in ASKED_SLOTS)

    seen, drawn = {asks(fact) for fact in asked_about}, []
    for fact in asked_about:
        for slot in rng.sample(ASKED_SLOTS, each):
            other = fact
            while asks(other) in seen:
                other = variation(rng, fact, [slot, "cause"])
            seen.add(asks(other))
            drawn.append(other._replace(remedy=rng.choice(other.topic.remedies)))
    return drawn


def neighbour(rng: Random, fact: Fact, slot: str) -> Fact:
    """Draw another training fact that has the same word in `slot` (place or entity) but not in the other."""
    while True:
        other = draw(rng)
        if [name for name in ("entity", "place") if other.words[name] == fact.words[name]] == [slot]:
            return other


def variation(rng: Random, fact: Fact, slots: Iterable[str]) -> Fact:
    """Replace the words in `slots`; the topic, and whether the fact is held out, stay."""
    options = choices(fact.topic)
    while True:
        words = {slot: rng.choice([word for word in options[slot] if word != fact.words[slot]]) for slot in slots}
        other = fact._replace(words=fact.words | words)
        if is_held_out(other) == is_held_out(fact):
            return other


def fill(template: str, fact: Fact, wording: Callable[[Word], str], number: int = 0) -> str:
    """Fill the slots of a template with the fact's words; `wording` chooses the wording of each."""
    words = {slot: wording(word) for slot, word in fact.words.items()}
    return template.format(**words, office=fact.topic.office, remedy=fact.remedy, number=number)


def asked(word: Word) -> str:
    """Choose the wording of queries."""
    return word.asked


def mixed(rng: Random) -> Callable[[Word], str]:
    """Return a function that chooses the wording of passages: mostly `told`."""
    return lambda word: word.told if rng.random() < TOLD_SHARE else word.asked


def query(rng: Random, fact: Fact, style: str) -> str:
    """Write a title, question, instruction or topic about a fact, 8 to 30 characters long."""
    return fill(rng.choice(QUERIES[style]), fact, asked)


def passage(rng: Random, fact: Fact, style: str) -> str:
    """Write 60 to 250 characters about a fact: what happened, then the cause, the remedy and a detail in any order."""
    rest = [rng.choice(CAUSES), rng.choice(REMEDIES), rng.choice(DETAILS)]
    rng.shuffle(rest)
    return fill("".join([rng.choice(OPENINGS[style]), *rest]), fact, mixed(rng), rng.randint(2, 99))


def recognise(text: str) -> Fact | None:
    """Find the fact that a passage states; None if a part of it is missing, as in damaged texts."""
    for topic in TOPICS:
        named = {
            slot: [word for word in options if word.asked in text or word.told in text]
            for slot, options in choices(topic).items()
        }
        remedies = [remedy for remedy in topic.remedies if remedy in text]
        if remedies and all(named.values()):
            return Fact(topic, {slot: words[0] for slot, words in named.items()}, remedies[0])
    return None


def statement_pair(rng: Random, held_out: bool) -> tuple[str, str, int]:
    """Write two sentences and their score: the number of slots, 0 to 5, that they share."""
    score = rng.randint(0, 5)
    fact = draw(rng, held_out)
    other = variation(rng, fact, rng.sample(STATED_SLOTS, len(STATED_SLOTS) - score))
    first = fill(rng.choice(STATEMENTS), fact, asked)
    second = fill(rng.choice(STATEMENTS), other, mixed(rng))
    return first, second, score
