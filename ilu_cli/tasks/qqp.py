from __future__ import annotations

import random

from ilu_cli.registry import task
from ilu_cli.tasks import Example, Fields, Task, fill, words


@task()
class QQP(Task):
    """Whether two questions ask the same (GLUE QQP).

    A row: {'question1': 'Why is my phone so hot?', 'question2': 'My phone is so hot; why?', 'label': 1}
    """

    hub, config = "nyu-mll/glue", "qqp"
    splits = {"train": "train", "test": "validation"}
    fields = {"question1": str, "question2": str, "label": int}
    labels = (" no", " yes")

    def example(self, row: Fields) -> Example:
        prompt = f"Question 1: {row['question1']}\nQuestion 2: {row['question2']}\nSame meaning:"
        return Example(prompt, self.labels[row["label"]], self.labels)

    def generate(self, rng: random.Random) -> Fields:
        label = rng.randrange(2)
        forms = rng.choice(INTENTS)
        first, second = rng.sample(forms, 2)
        if not label:
            second = first if rng.random() < NEAR else second
            slot = rng.choice([s for s in WORDS if f"{{{s}}}" in first])
            second = second.replace(f"{{{slot}}}", f"{{{slot}2}}")
        pair = fill(f"{first}|{second}", WORDS, rng).split("|")
        one, two = (q[0].upper() + q[1:] for q in pair)
        return {"question1": one, "question2": two, "label": label}


WORDS = {
    "stain": words("red wine,coffee,candle wax,ink,grass,tomato sauce,chewing gum,motor oil"),
    "cloth": words("a wool carpet,a cotton shirt,a leather sofa,a silk scarf,a pair of jeans,a tablecloth,a backpack"),
    "skill": words("the guitar,chess,touch typing,French cooking,knitting,drawing,juggling,the accordion,swimming"),
    "span": words("a week,a month,three months,half a year,one summer,a year"),
    "dish": words("bread,rice,lentil soup,roast chicken,pancakes,an omelette,strawberry jam,pizza dough,fish stew"),
    "tool": words("an oven,a scale,butter,a freezer,eggs,a microwave,salt,milk"),
    "gadget": words("my laptop,my phone,my printer,my camera,my router,my headphones,my tablet,my smart watch"),
    "fault": words("so slow,so hot,making noise,not charging,switching itself off,losing its connection"),
    "plant": words("tomatoes,basil,roses,an orchid,a lemon tree,strawberries,lavender,a cactus,potatoes"),
    "spot": words("a balcony,a shady garden,a greenhouse,a north-facing room,sandy soil,a small flat"),
    "pet": words("a kitten,a puppy,a rabbit,an old dog,a parrot,a hamster,a tortoise,a shy cat"),
    "trick": words("sleep at night,use a carrier,stop biting,eat dry food,come when called,stay alone"),
    "home": words("a new flat,another dog,the car,a lead,visitors,a new owner,small children,the vacuum cleaner"),
    "way": words("train,bicycle,bus,car,ferry,plane"),
    "trip": words("the coast,the mountains,the lake district,my cousin's farm,the national park,the old harbour"),
    "saving": words("groceries,heating,rent,a wedding,insurance,books,petrol"),
    "who": words("a student,a pensioner,a family of five,a young couple,a freelancer,a single parent"),
    "ache": words("back pain,a sore throat,headaches,hay fever,cold feet,a stiff neck,hiccups"),
    "habit": words("running,sitting all day,flying,a cold night,swimming,gardening,reading in bed"),
    "exam": words("a maths exam,a driving test,a job interview,a chemistry test,a piano exam,a debate"),
    "program": words("a spreadsheet,a text editor,a web browser,a mail program,a photo editor,a calendar"),
    "file": words("a table,two pictures,old messages,a password,a chart,a signature"),
    "act": words("print,delete,copy,share,hide,sort"),
}


# Every line is one intent: several ways of asking the same. Two slots each; another word in either is another question.
INTENTS = tuple(
    tuple(line.split("|"))
    for line in (
        "How do I get {stain} out of {cloth}?|What is the best way to get {stain} out of {cloth}?|How can {stain} be removed "
        "from {cloth}?|Is there a way to remove {stain} from {cloth}?|{cloth} has {stain} on it; how do I get it out?",
        "Can I learn {skill} in {span}?|Is it possible to learn {skill} in {span}?|Is {span} enough to learn {skill}?|Will I "
        "be able to learn {skill} in {span}?|Can {skill} be learned in {span}?",
        "How do you make {dish} without {tool}?|Can I make {dish} without {tool}?|What is a good way to make {dish} if I have "
        "no {tool}?|Is there any recipe for {dish} without {tool}?|Without {tool}, how do you make {dish}?",
        "Why is {gadget} {fault}?|What could be the reason that {gadget} is {fault}?|For what reason is {gadget} {fault}?|Why "
        "is it that {gadget} is {fault}?|{gadget} is {fault}; why?",
        "How do I grow {plant} in {spot}?|What do I need to grow {plant} in {spot}?|Any advice on growing {plant} in {spot}?|"
        "What is the best way to grow {plant} in {spot}?|Growing {plant} in {spot}: how do I do it?",
        "How can I teach {pet} to {trick}?|What is the best way to teach {pet} to {trick}?|How do I get {pet} to {trick}?|How "
        "do I train {pet} to {trick}?|Can {pet} be taught to {trick}, and how?",
        "What is the cheapest way to reach {trip} by {way}?|How do I get to {trip} by {way} for little money?|How can I travel "
        "to {trip} by {way} cheaply?|Going to {trip} by {way}: what is the cheapest way?|Is there a cheap way to get to {trip} "
        "by {way}?",
        "How can {who} save money on {saving}?|How does {who} spend less on {saving}?|What is a good way for {who} to save "
        "money on {saving}?|What can {who} do to spend less on {saving}?|Saving money on {saving}: what works for {who}?",
        "What helps against {ache} after {habit}?|How do I get rid of {ache} after {habit}?|What can I do about {ache} after "
        "{habit}?|After {habit} I have {ache}; what helps?|Is there anything that helps against {ache} after {habit}?",
        "How should I prepare for {exam} in {span}?|What is the best way to prepare for {exam} in {span}?|I have {span} to get "
        "ready for {exam}; how should I use it?|How do I get ready for {exam} in {span}?|With {span} left, how should I "
        "prepare for {exam}?",
        "How do I {act} {file} in {program}?|What is the way to {act} {file} in {program}?|Is it possible to {act} {file} in "
        "{program}?|In {program}, how do I {act} {file}?|Where in {program} can I {act} {file}?",
        "How long does it take {pet} to get used to {home}?|How long will {pet} need to get used to {home}?|When will {pet} be "
        "used to {home}?|How much time does {pet} take to get used to {home}?|How soon does {pet} get used to {home}?",
    )
)


NEAR = 0.55  # share of the other questions that are asked in the same words, save one slot
