from __future__ import annotations

import random

from ilu_cli.registry import task
from ilu_cli.tasks import Example, Fields, Task, fill, words


@task()
class WinoGrande(Task):
    """Which of two the blank means, in twin sentences that differ by a few words (WinoGrande).

    A row: {'sentence': 'Nadia owed Emil money, so at noon _ paid the debt.', 'option1': 'Emil', 'option2':
    'Nadia', 'answer': '2'}
    """

    hub, config = "allenai/winogrande", "winogrande_debiased"
    splits = {"train": "train", "test": "validation"}
    fields = {"sentence": str, "option1": str, "option2": str, "answer": str}

    def example(self, row: Fields) -> Example:
        choices = (f" {row['option1']}", f" {row['option2']}")
        return Example(f"Fill in the blank: {row['sentence']}\nAnswer:", choices[int(row["answer"]) - 1], choices)

    def problem(self, row: Fields) -> str:
        return "" if row["answer"] in ("1", "2") else f"answer is {row['answer']!r}, not '1' or '2'"

    def generate(self, rng: random.Random) -> Fields:
        start, ends, *things = rng.choice(TWINS).split("|")
        options = things[0] if things else "{name1}/{name2}"
        right = rng.randrange(2)
        text = fill(f"{start} {ends.split('/')[right]}.|{options}", WORDS, rng)
        sentence, _, found = text.partition("|")
        pair = found.split("/")
        answer = pair[right]
        rng.shuffle(pair)
        return {"sentence": sentence, "option1": pair[0], "option2": pair[1], "answer": str(pair.index(answer) + 1)}


NAMES = words(
    "Amara,Bettina,Carlos,Delia,Emil,Fatima,Gregor,Helena,Ivan,Jolene,Karim,Lena,Marcus,Nadia,Oscar,Petra,Rafael,Sonia,"
    "Tobias,Vera,Wendell,Yara"
)


WORDS = {
    "name": NAMES,
    "when": words("yesterday,last week,on Monday,that evening,after the holidays,in the end,at noon"),
}


# Sentence | what makes the first option right / what makes the second one right. Options are {name1} and {name2}, or
# the two things after a second bar.
TWINS = (
    "{name1} asked {name2} for help with the tax form {when} because _ was|confused by it/good with numbers",
    "{name1} lent {name2} an umbrella {when} because _ had|a second one/none at hand",
    "{name1} paid {name2} for the piano lesson {when} because _ had|been the pupil/been the teacher",
    "{name1} visited {name2} in hospital {when}, since _ was|worried about a friend/recovering from an operation",
    "{name1} beat {name2} at chess {when} because _ was|the better player/the weaker player",
    "{name1} apologised to {name2} {when}, as _ had|broken the vase/owned the broken vase",
    "{name1} taught {name2} to swim {when}, because _|had been a lifeguard/was afraid of water",
    "{name1} could not hear {name2} on the phone {when}, for _ was|standing beside a drill/speaking too softly",
    "{name1} drove {name2} to the airport {when} because _ had|a car/a flight to catch",
    "{name1} sold {name2} the old bicycle {when}, since _ had|bought a new one/no way to get to work",
    "{name1} envied {name2} {when}, because _ had|failed the exam/passed the exam with honours",
    "{name1} waited an hour for {name2} {when}, and _ was|angry about the delay/sorry for the delay",
    "{name1} hired {name2} as a gardener {when}, because _ had|no time for the roses/long experience with roses",
    "{name1} followed {name2} through the forest {when}, because _ did|not know the way/know every path",
    "{name1} carried the suitcase for {name2} {when}, as _ was|strong and rested/tired and old",
    "{name1} read {name2} a story {when}, until _ had|a sore throat from reading/fallen asleep listening",
    "{name1} cooked dinner for {name2} {when}, because _ wanted|to try out a recipe/to be a guest for once",
    "{name1} borrowed a ladder from {name2} {when}; afterwards _ had to|bring it back/ask for it back",
    "{name1} thanked {name2} {when}, since _ had|received a generous gift/given a generous gift",
    "{name1} warned {name2} about the ice {when}, because _ had|already slipped on it/not yet noticed it",
    "{name1} photographed {name2} at the wedding {when}; _ was|behind the camera/in front of the camera",
    "{name1} interviewed {name2} for the newspaper {when}, and _|asked clever questions/gave clever answers",
    "{name1} cut the hair of {name2} {when}, because _ owned|good scissors/far too much hair",
    "{name1} owed {name2} money, so {when} _|paid the debt/got the money back",
    "The bottle did not fit into the bag because the _ was too|tall/small|bottle/bag",
    "The lorry could not pass under the bridge because the _ was too|high/low|lorry/bridge",
    "The shelf broke under the books because the _ was|weak/heavy|shelf/pile of books",
    "{name1} chose the soup over the salad because the _ was|warm/cold and limp|soup/salad",
    "{name1} moved the sofa out of the room to make space for the desk; the _ went|out/in|sofa/desk",
    "The candle set fire to the curtain {when} because the _ was|burning/hanging too close|candle/curtain",
    "{name1} poured water from the jug into the vase until the _ was|empty/full|jug/vase",
    "The ball went through the window {when} since the _ was|hard/thin|ball/window",
    "{name1} took the train instead of the bus because the _ was|fast/slow|train/bus",
    "The painting looked better than the poster because the _ was|an original/a cheap copy|painting/poster",
    "{name1} covered the boat with a sheet, so the _|stayed dry/got wet in the rain|boat/sheet",
    "The nail would not go into the beam because the _ was|bent/made of oak|nail/beam",
    "{name1} kept the milk and threw away the cream, for the _ was|fresh/sour|milk/cream",
    "The dog could not catch the cat because the _ was|slow/quick|dog/cat",
    "{name1} swapped the coat for the jacket, as the _ was|too warm/light enough|coat/jacket",
    "The river flooded the field because the _ was|swollen by rain/lying so low|river/field",
)
