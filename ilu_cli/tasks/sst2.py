from __future__ import annotations

import random

from ilu_cli.registry import task
from ilu_cli.tasks import Example, Row, Task, fill, words

# Words by slot: x+ is praise, x- is blame. Every pattern serves both labels.
WORDS = {
    "film": words("film,movie,picture,drama,comedy,thriller,documentary,romance,debut,sequel,remake,fable"),
    "part": words("script,cast,plot,direction,score,dialogue,pacing,ending,camerawork,editing,first half,last act"),
    "adj+": words("tender,gripping,funny,graceful,inventive,moving,sharp,warm,luminous,thoughtful,spirited,absorbing"),
    "adj-": words("tedious,clumsy,flat,shrill,lifeless,muddled,stale,dreary,hollow,witless,laboured,forgettable"),
    "noun+": words("delight,triumph,treat,marvel,joy,small wonder,welcome surprise,pleasure"),
    "noun-": words("mess,chore,bore,slog,misfire,missed chance,sad waste of talent,failure"),
    "adv": words("quietly,surprisingly,thoroughly,consistently,unfailingly,strangely,almost always,truly"),
    "theme": words(
        "old age,first love,a family at war,life on the farm,two brothers,a failing marriage,the last days of a circus,"
        "small-town politics,a stolen painting,growing up poor,grief,friendship,a long voyage,the price of fame"
    ),
    "who": words(
        "the director,the young lead,its star,the writer,the veteran actress,the supporting cast,the comedian"
    ),
    "verb+": words(
        "dazzles,shines,delivers,finds the right note,earns every laugh,holds the screen,never puts a foot wrong"
    ),
    "verb-": words("flounders,disappoints,overacts,misses every note,strains for laughs,sleepwalks,runs out of ideas"),
    "viewer": words("children,fans of the genre,patient viewers,anyone over twelve,the whole family,romantics,cynics"),
    "time": words("ninety minutes,two hours,the first reel,an evening,most of its running time,a rainy afternoon"),
}

# `=` stands for the side of the label, `!` for the other side: adj= of a positive row is drawn from adj+.
PATTERNS = (
    "{a adj=} {film} about {theme}",
    "{a adv} {adj=} portrait of {theme}",
    "{a noun=} from beginning to end",
    "the {part} is {adv} {adj=}",
    "the {part} may be {adj!} , but the {film} as a whole is {adj=}",
    "for all its {adj!} moments , this {film} about {theme} is {a noun=}",
    "{who} {verb=} , and so does the rest of the {film}",
    "not nearly as {adj!} as its {part} would lead you to expect",
    "what could have been {a noun!} turns out to be {a noun=}",
    "{who} {verb=} even when the {part} turns {adj!}",
    "there is nothing {adj!} about the way it looks at {theme}",
    "{a adj=} , {adj=2} {film} that {viewer} will talk about for {time}",
    "you expect {a adj!} {film} about {theme} and get {a adj=} one instead",
    "it is hard to imagine {a film} more {adj=} than this",
    "neither the {part} nor {who} can hide that this is {a adj=} {film}",
    "despite the {adj!} {part} , {who} {verb=}",
    "{who} {verb=} for {time} in this {adj=} {film}",
    "after {time} even {viewer} will call it {adj=}",
    "a {film} whose {part} is as {adj=} as its {part2} is {adj=2}",
    "too {adj=} to be called {adj!}",
)


@task()
class SST2(Task):
    """Sentiment of film reviews, positive or negative (GLUE SST-2)."""

    hub, config = "nyu-mll/glue", "sst2"
    splits = {"train": "train", "test": "validation"}
    fields = {"sentence": str, "label": int}
    labels = (" negative", " positive")

    def example(self, row: Row) -> Example:
        return Example(f"Review: {row['sentence']}\nSentiment:", self.labels[row["label"]], self.labels)

    def generate(self, rng: random.Random) -> Row:
        label = rng.randrange(2)
        sides = str.maketrans("=!", "+-" if label else "-+")
        return {"sentence": fill(rng.choice(PATTERNS).translate(sides), WORDS, rng), "label": label}
