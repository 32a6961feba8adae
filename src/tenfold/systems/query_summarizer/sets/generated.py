"""Generated topics for runs without data: stories whose sentences are about known things.

Each topic's documents tell of several subjects; a query names one of them by words, the references say what the
documents say about it, in other order and partly in other words. Facts stand anywhere in a document; sentences without
a fact about any subject, and sentences that only name one, are mixed in. A summary needs the query.
"""

import random
from collections.abc import Sequence

from tenfold.systems.query_summarizer.sets.topic import Topic
from tenfold.systems.query_summarizer.text.sentences import document_of_sentences

_NAMES = {
    "subjects": """bridge harbour museum railway hospital library theatre market castle observatory stadium canal
        monastery airport brewery lighthouse university garden tunnel reservoir cathedral factory archive palace""",
    "places": "Arlen Borvik Calder Dunmore Estrel Farrow Glenby Halmar Istria Jorvik Kestrel Lomond Marl Norrin",
    "things": """miners sailors storms floods merchants engineers farmers students teachers pilots painters weavers
        soldiers bakers astronomers musicians fishermen doctors printers carpenters""",
}
_SUBJECTS, _PLACES, _THINGS = (words.split() for words in _NAMES.values())
_ACTS = [
    ("was opened by", "started its work under"),
    ("was rebuilt after", "rose again following"),
    ("lost its roof in", "was left open to the sky by"),
    ("received money from", "was paid for by"),
    ("was closed because of", "had to shut owing to"),
    ("employs people from", "gives work to"),
    ("was painted by order of", "got its colours from"),
    ("stores records of", "keeps papers about"),
]
_FILLERS = [
    "The weather in {place} is mild for most of the year and rain falls mainly in {season}.",
    "Visitors to {place} often stay for a week and speak of the food in {season}.",
    "Nobody in {place} remembers a {season} as quiet as the last one was.",
    "Trains leave {place} twice a day, and once more on Sundays in {season}.",
]
_ASIDES = "Some people in {place} like the {subject}, and some have never thought about it at all."
_OPENINGS = (
    "The {subject} of {place}",
    "{place}'s old {subject}",
    "It is known that this {subject}",
    "As records in {place} tell, its {subject}",
)
_QUESTIONS = ("What happened to the {} of {}?", "Tell the story of the {} in {}.")
_SEASONS = ("spring", "summer", "autumn", "winter")


def generate_topics(count: int, seed: int, *, documents: int = 2, subjects: int = 4, facts: int = 4) -> list[Topic]:
    """Topics, the same for the same seed.

    Args:
        count: of topics.
        seed: of everything.
        documents: of each topic.
        subjects: told of in each topic; the query names one.
        facts: about each subject.
    """
    source = random.Random(seed)
    topics = []
    for number in range(count):
        place = source.choice(_PLACES)
        told = source.sample(_SUBJECTS, subjects)
        known = {subject: _facts(subject, place, facts, source) for subject in told}
        lines: list[list[str]] = [[] for _ in range(documents)]
        for subject in told:
            for plain, _ in known[subject]:
                source.choice(lines).append(plain)
            source.choice(lines).append(_ASIDES.format(place=place, subject=subject))
        for filler in _FILLERS * documents:
            source.choice(lines).append(filler.format(place=place, season=source.choice(_SEASONS)))
        for part in lines:
            source.shuffle(part)
            if not part:
                part.append(_FILLERS[0].format(place=place, season=source.choice(_SEASONS)))
        asked = told[0]
        topics.append(
            Topic(
                id=f"generated-{seed}-{number}",
                query=source.choice(_QUESTIONS).format(asked, place),
                documents=tuple(
                    document_of_sentences(part, f"{place} {letter}", " ")
                    for letter, part in zip("ABCDEFGH", lines, strict=False)
                ),
                references=tuple(_reference(known[asked], source) for _ in range(2)),
                group=f"{seed}-{number}",
            )
        )  # fmt: skip
    return topics


def _facts(subject: str, place: str, count: int, source: random.Random) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for act, other in source.sample(_ACTS, count):
        thing, year = source.choice(_THINGS), source.randint(1650, 1990)
        # Four openings without three words in common: blocking repetitions must not block facts.
        opening = _OPENINGS[len(found) % len(_OPENINGS)].format(subject=subject, place=place)
        found.append((f"{opening} {act} {thing} in {year}.", f"In {year} the {subject} {other} {thing}."))
    return found


def _reference(facts: Sequence[tuple[str, str]], source: random.Random) -> tuple[str, ...]:
    shuffled = source.sample(list(facts), len(facts))
    return tuple(source.choice(pair) for pair in shuffled)
