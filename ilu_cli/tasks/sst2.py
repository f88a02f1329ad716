from __future__ import annotations

import random

from ilu_cli.registry import task
from ilu_cli.tasks import Example, Fields, Task, fill, words


@task()
class SST2(Task):
    """Sentiment of film reviews, positive or negative (GLUE SST-2).

    A row: {'sentence': 'never flat , never stale', 'label': 1}
    """

    hub, config = "nyu-mll/glue", "sst2"
    splits = {"train": "train", "test": "validation"}
    fields = {"sentence": str, "label": int}
    labels = (" negative", " positive")

    def example(self, row: Fields) -> Example:
        return Example(f"Review: {row['sentence']}\nSentiment:", self.labels[row["label"]], self.labels)

    def generate(self, rng: random.Random) -> Fields:
        label = rng.randrange(2)
        sides = str.maketrans("=!", "+-" if label else "-+")
        return {"sentence": fill(rng.choice(PATTERNS).translate(sides), WORDS, rng), "label": label}


# Words by slot: x+ is praise, x- is blame. Every pattern serves both labels.
WORDS = {
    "film": words("film,movie,picture,drama,comedy,thriller,documentary,romance,debut,sequel,remake,fable"),
    "part": words("script,cast,plot,direction,score,dialogue,pacing,ending,camerawork,editing,first half,last act"),
    "adv": words("surprisingly,thoroughly,consistently,unexpectedly,undeniably,strangely,truly,remarkably"),
    "theme": words(
        "old age,first love,a family at war,life on the farm,two brothers,a failing marriage,the last days of a circus,"
        "small-town politics,a stolen painting,growing up poor,grief,friendship,a long voyage,the price of fame"
    ),
    "who": words("the director,the young lead,its star,the writer,the veteran actress,the narrator,the comedian"),
    "viewer": words("most viewers,fans of the genre,teenagers,parents,older viewers,romantics,critics,film buffs"),
    "adj+": words("tender,gripping,funny,graceful,inventive,moving,sharp,warm,luminous,thoughtful,spirited,absorbing"),
    "adj-": words("tedious,clumsy,flat,shrill,lifeless,muddled,stale,dreary,hollow,witless,laboured,forgettable"),
    "noun+": words("delight,triumph,treat,marvel,joy,small wonder,welcome surprise,pleasure"),
    "noun-": words("mess,chore,bore,slog,misfire,missed chance,sad waste of talent,failure"),
    "quality+": words("ambition,charm,good looks,energy,craft,good intentions,early promise,fine music,clever ideas"),
    "quality-": words("rough edges,loose ends,slow stretches,old jokes,awkward pauses,borrowed ideas,cheap sets"),
    "does+": words(
        "comes alive,finds its feet,earns its tears,rises above the ordinary,gets under the skin,stays in the mind,"
        "rings true,finds something new to say"
    ),
    "does-": words(
        "loses its way,wears out its welcome,falls apart,talks down to its audience,runs out of ideas,goes stale,"
        "grinds to a halt,mistakes noise for feeling"
    ),
    "acts+": words("dazzles,shines,delivers,finds the right note,earns every laugh,holds the screen,steals the show"),
    "acts-": words("flounders,disappoints,overacts,misses every note,strains for laughs,sleepwalks,looks lost"),
    "left+": words("smiling,moved,wanting more,cheered,wide awake,full of hope"),
    "left-": words("cold,bored,checking the time,longing for the exit,half asleep,none the wiser"),
    "worth+": words("worth every minute,easy to recommend,hard to forget,well worth a second visit,a joy to watch"),
    "worth-": words("hard to sit through,easy to forget,impossible to recommend,not worth the ticket,a pain to watch"),
}


# `=` stands for the side of the label, `!` for the other side: adj= of a positive row is drawn from adj+.
PATTERNS = (
    "{a adj=} {film} about {theme}",
    "{a adv} {adj=} portrait of {theme}",
    "{a noun=} from beginning to end",
    "{adj=} , {adj=2} and {worth=}",
    "the {part} is {adv} {adj=}",
    "never {adj!} , never {adj!2}",
    "anything but {a adj!} look at {theme}",
    "{who} {acts=} , and so does the rest of the cast",
    "not nearly as {adj!} as its {part} would lead you to expect",
    "there is nothing {adj!} about the way it looks at {theme}",
    "it is hard to imagine {a film} less {adj!} than this",
    "too {adj=} to be called {adj!}",
    "{a adj=} {film} whose {part} never once turns {adj!}",
    "the {part} may be {adj!} , but the {film} as a whole is {adj=}",
    "for all its {quality!} , the {film} {does=}",
    "for all its {quality!} , the {film} never {does!}",
    "for all its {adj!} moments , this {film} about {theme} is {a noun=}",
    "what could have been {a noun!} turns out to be {a noun=}",
    "{who} {acts=} even when the {part} turns {adj!}",
    "you expect {a adj!} {film} about {theme} and get {a adj=} one instead",
    "neither the {part} nor {who} can hide that this is {a adj=} {film}",
    "despite {a adj!} {part} and some {quality!} , this {film} is {worth=}",
    "it has its {quality!} , yet it is {worth=}",
    "{viewer} may come for the {part} , but they will be left {left=}",
    "it starts out {adj!} , then slowly {does=} and leaves you {left=}",
    "{viewer} who found the trailer {adj!} should know that the {film} itself is {adj=}",
    "the book was {adj!} ; this {film} of it is {a noun=}",
    "i went in hoping for {a noun+} , fearing {a noun-} , and came out {left=}",
    "{a film} about {theme} has no right to be this {adj=} , whatever its {quality!}",
    "whenever it threatens to turn {adj!} , {who} {acts=} , and the whole thing {does=}",
    "if the {part} is {adj!} , as {viewer} will tell you , everything else is {adv} {adj=}",
    "{viewer} were left {left!} ; i was left {left=} , and i would call it {a noun=}",
    "although {who} {acts!} in the opening scenes , the story of {theme} {does=}",
    "those who call it {adj!} are wrong : this is {a adv} {adj=} {film}",
    "the {film} never {does!} , and not one scene in it is {adj!}",
)
