"""Question answering over distractors: records of invented people fill the prompt, a question is about one of them."""

from __future__ import annotations

from ..questions import question_task
from ..samples import Sample, Writer

ROLES = ("baker", "judge", "pilot", "nurse", "farmer", "painter", "sailor", "teacher", "tailor", "miner")
FACTS = (
    ("{name} lives in the town of", "In which town does {name} live?"),
    ("{name} collects every kind of", "What does {name} collect?"),
    ("{name} gave a speech about the", "What did {name} give a speech about?"),
    ("{name} is afraid of one thing, the", "What is {name} afraid of?"),
)
"""What is told, up to the word that differs from person to person, and how it is asked."""


@question_task("qa", "the fact asked for is in the answer", samples=192, answer_tokens=16, scoring="part")
def qa(writer: Writer) -> Sample:
    """Four facts a person; people have the same facts with other words, and names that share a part."""
    rng, nouns = writer.rng, writer.words.nouns
    seconds = [word.capitalize() for word in rng.sample(nouns, 40)]
    documents: list[tuple[str, list[str], str]] = []
    used, names = 0, set[str]()
    while True:
        name = f"{rng.choice(writer.words.adjectives).capitalize()} {rng.choice(seconds)}"
        if name in names:
            continue
        values = rng.sample(nouns, len(FACTS))
        sentences = [f"{fact.format(name=name)} {value}." for (fact, _), value in zip(FACTS, values, strict=True)]
        text = f"\n\nRecord {len(documents) + 1}: {name} is a {rng.choice(ROLES)}. {' '.join(sentences)}"
        size = writer.count(text) + 1
        if documents and used + size > writer.room:
            break
        used += size
        names.add(name)
        documents.append((name, values, text))
    name, values, _ = rng.choice(documents)
    which = rng.randrange(len(values))
    beginning, question = FACTS[which]
    return Sample(
        introduction="Answer a question from the following records. Give the answer alone.\n\n",
        body="".join(text for _, _, text in documents),
        question=f"\n\nQuestion: {question.format(name=name)}",
        beginning=f"Answer: {beginning.format(name=name)}",
        answers=(values[which],),
        reply=f" {values[which]}",
    )
