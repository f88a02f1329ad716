from __future__ import annotations

import random

from ilu_cli.registry import task
from ilu_cli.tasks import Example, Fields, Task, fill, words


@task()
class MNLI(Task):
    """Whether a sentence follows from another: yes, maybe, or no (GLUE MNLI).

    A row: {'premise': 'Isla mended the fence although the shop was shut.', 'hypothesis': 'The shop was
    shut.', 'label': 0}
    """

    hub, config = "nyu-mll/glue", "mnli"
    splits = {"train": "train", "test": "validation_matched"}
    fields = {"premise": str, "hypothesis": str, "label": int}
    labels = (" yes", " maybe", " no")

    def example(self, row: Fields) -> Example:
        prompt = f"Premise: {row['premise']}\nHypothesis: {row['hypothesis']}\nAnswer:"
        return Example(prompt, self.labels[row["label"]], self.labels)

    def generate(self, rng: random.Random) -> Fields:
        label = rng.randrange(3)
        premise, *by_label = rng.choice(RULES).split("|")
        pattern = f"{premise}.|{rng.choice(by_label[label].split('/'))}."
        thing = rng.choice(WORDS["thing"])
        tables = WORDS | {"kind": [KINDS[thing[:-1]]]}
        if "{kind}" in pattern:
            pattern = pattern.replace("{thing}", thing)
        first, second = fill(pattern, tables, rng).split("|")
        return {"premise": first[0].upper() + first[1:], "hypothesis": second[0].upper() + second[1:], "label": label}


WORDS = {
    "who": words(
        "the farmer,the teacher,the baker,the nurse,the pilot,the gardener,the plumber,the librarian,the sailor,the tailor,"
        "the mayor,the drummer,the carpenter,the florist,the referee,the miner"
    ),
    "name": words(
        "Amara,Bruno,Celia,Dmitri,Esther,Farid,Greta,Hiro,Isla,Jorge,Klara,Liam,Mona,Nuri,Otto,Paula,Rasmus,Siri"
    ),
    "verb": words("sold,bought,painted,repaired,counted,cleaned,moved,found,lost,packed,borrowed,inspected"),
    "thing": words(
        "chairs,tables,wardrobes,goats,horses,ducks,apples,pears,plums,hammers,saws,drills,roses,tulips,daisies,drums,"
        "violins,flutes"
    ),
    "place": words("barn,cellar,attic,kitchen,garage,warehouse,tent,workshop,hall,shed,station,boat house"),
    "when": words("on Monday,on Friday,last week,in the spring,at the weekend,two days ago,during the holidays"),
    "state": words("clean,dusty,expensive,wet,old,new,heavy,green,broken,ready"),
    "deed": words(
        "fed the hens,locked the gate,wrote a letter,swept the yard,mended the fence,called a friend,baked a cake,"
        "sharpened the knives,posted a parcel,watered the beans,tuned the piano,polished the boots"
    ),
    "more": words("taller,older,faster,richer,stronger,busier,louder,kinder"),
    "reason": words(
        "it had rained all night,the road was closed,a storm was coming,the lights had gone out,the guests were late,"
        "the bridge was closed,the shop was shut,the bus had broken down"
    ),
    "few": words("two,three,four"),
    "n": words("six,seven,eight,nine"),
    "lots": words("eleven,twelve,fifteen,twenty"),
}


KINDS = {
    "chair": "pieces of furniture", "table": "pieces of furniture", "wardrobe": "pieces of furniture",
    "goat": "animals", "horse": "animals", "duck": "animals", "apple": "pieces of fruit", "pear": "pieces of fruit",
    "plum": "pieces of fruit", "hammer": "tools", "saw": "tools", "drill": "tools", "rose": "flowers",
    "tulip": "flowers", "daisie": "flowers", "drum": "instruments", "violin": "instruments", "flute": "instruments",
}  # fmt: skip


# One inference a line: premise | what follows | what may or may not be | what cannot be. Slashes part alternatives.
RULES = (
    "{who} {verb} {n} {thing} {when}|{who} {verb} more than {few} {thing} {when}/it was not more than {lots} {thing} that "
    "{who} {verb} {when}|{who} {verb} {n} {thing} in the {place}/{who2} {verb} more than {few} {thing}|{who} {verb} no more "
    "than {few} {thing} {when}, and none besides/it was {lots} {thing} that {who} {verb} {when}",
    "{who} {verb} {n} {thing} in the {place}|{who} {verb} some {kind} in the {place}/there were {kind} in the {place}|{who} "
    "{verb} some {kind} in the {place2}/there were more {kind} than {thing} in the {place}|{who} {verb} no {kind} at all/"
    "there was nothing in the {place}",
    "{who} {verb} some {kind} {when}|{who} {verb} something {when}/some {kind} were {verb} {when}|{who} {verb} some {thing} "
    "{when}/all that {who} {verb} {when} were {thing}|{who} {verb} nothing {when}/none of the {kind} were {verb} by {who}",
    "{who} {verb} the {thing} and {who2} {verb2} the {thing2}|the {thing} were {verb} by {who}/it was not {who} but {who2} "
    "who {verb2} the {thing2}|the {thing} were {verb2} by {who}/{who} did not know who {verb2} the {thing2}|it was not "
    "{who} but {who2} who {verb} the {thing}/nobody {verb} the {thing}",
    "{name} {deed} in the morning and {deed2} in the evening|it was still morning when {name} {deed}/{name} had not waited "
    "for the evening and {deed} in the morning|{name} {deed} again in the evening/{name} {deed} because {name2} had asked "
    "for it|{name} {deed2} before noon, and did nothing in the evening/it was already evening when {name} {deed}",
    "the {thing} are in the {place} and the {thing2} are in the {place2}|the {place} is where the {thing} are/the {thing2} "
    "are not in the {place}|the {thing} were in the {place2} the day before/there are fewer {thing} than {thing2}|the "
    "{place2} is where the {thing} are/the {thing2} are not in the {place2}",
    "{name} is {more} than {name2}, and {name2} is {more} than {name3}|{name} is {more} than {name3}/{name3} is not {more} "
    "than {name}|{name} is {more} than {name4}/{name4} is not {more} than {name3}|{name3} is {more} than {name}/{name} is "
    "not {more} than {name3}",
    "all of the {thing} in the {place} were {state}|some of the {thing} in the {place} were {state}/none of the {thing} in "
    "the {place} were not {state}|all of the {thing} in the {place2} were {state}/some of the {thing} in the {place} were "
    "{state2}|some of the {thing} in the {place} were not {state}/none of the {thing} in the {place} were {state}",
    "only some of the {thing} in the {place} were {state}|not all of the {thing} in the {place} were {state}/there were "
    "{state} {thing} in the {place}|most of the {thing} in the {place} were {state}/some of the {thing} in the {place} were "
    "{state2}|all of the {thing} in the {place} were {state}/there were no {state} {thing} in the {place}",
    "{name} {deed} {when} because {reason}|{reason}, and so {name} {deed}/{name} did something {when}|{reason}, and {name} "
    "was annoyed/{name} {deed2} {when} as well|{name} {deed} {when} for no reason at all/nobody did anything {when}",
    "{name} {deed} although {reason}|{reason}, but {name} {deed} all the same/{reason}|{name2} {deed} too/{name} {deed} for "
    "the first time|{name} never {deed}/{name} {deed} only because {reason}",
)
