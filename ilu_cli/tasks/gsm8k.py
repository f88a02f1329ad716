from __future__ import annotations

import ast
import operator
import random
import re
from collections.abc import Callable

from ilu_cli.registry import task
from ilu_cli.tasks import Example, Fields, Task, words


@task()
class GSM8K(Task):
    """Grade-school word problems with worked answers (GSM8K).

    A row: {'question': 'Dora is 4 years old, and Uma is 4 times as old. How old will Uma be in 3 years?',
    'answer': 'Uma is 4 x 4 = <<4*4=16>>16 years old now.\\nIn 3 years Uma will be 16 + 3 =
    <<16+3=19>>19.\\n#### 19'}
    """

    hub, config = "openai/gsm8k", "main"
    fields = {"question": str, "answer": str}

    def example(self, row: Fields) -> Example:
        return Example(f"Question: {row['question']}\nAnswer:", f" {row['answer']}")

    def correct(self, row: Fields, completion: str) -> bool:
        """Compare the number after `####`; an answer without that mark is judged by its last number."""
        return _final(completion.partition("Question:")[0]) == _final(row["answer"])

    def generate(self, rng: random.Random) -> Fields:
        story = Story(rng)
        question = rng.choice(STORIES)(story)
        last = _final(story.lines[-1].rpartition(">>")[2].split(" ")[0])
        return {"question": question, "answer": "\n".join([*story.lines, f"#### {last:.0f}"])}


class Story:
    """Draws numbers and names, and writes each step of the working with its calculator mark."""

    def __init__(self, rng: random.Random) -> None:
        self.rng, self.lines = rng, list[str]()
        self.a, self.b, self.c = rng.sample(NAMES, 3)
        self.goods, self.place = rng.choice(GOODS), rng.choice(PLACES)

    def n(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return self.rng.randint(low, high)

    def work(self, text: str, expression: str) -> int:
        """Append a line, with `@` standing for `expression=<<expression=value>>value`; return the value."""
        value = worked_out(ast.parse(expression, mode="eval").body)
        whole = int(value)
        if whole != value or whole <= 0:
            raise ValueError(f"{expression} = {value} is no positive whole number")
        shown = expression.replace("*", " x ").replace("/", " / ").replace("+", " + ").replace("-", " - ")
        self.lines.append(text.replace("@", f"{shown} = <<{expression}={whole}>>{whole}"))
        return whole


SIGNS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def worked_out(node: ast.expr) -> float:
    """The value of an expression of numbers and + - * /."""
    if isinstance(node, ast.BinOp):
        return float(SIGNS[type(node.op)](worked_out(node.left), worked_out(node.right)))
    return float(ast.literal_eval(node))


NAMES = words(
    "Amara,Ben,Chidi,Dora,Elias,Freya,Goran,Hana,Ines,Jonas,Kavya,Leo,Mina,Nils,Olga,Pablo,Quinn,Rosa,Sven,Tara,Uma,"
    "Victor,Wanda,Yusuf,Zoe"
)


GOODS = words("pencils,notebooks,stickers,marbles,postcards,badges,ribbons,candles,lemons,plums,buttons,envelopes")


PLACES = words("market,fair,library sale,corner shop,school bazaar,harbour store,flower stall,village hall")


def shopping(s: Story) -> str:
    """A price times a count, and an amount more."""
    count, price, extra = s.n(3, 14), s.n(2, 9), s.n(5, 30)
    cost = s.work(f"The {s.goods} cost @ dollars.", f"{count}*{price}")
    s.work("Together that is @ dollars.", f"{cost}+{extra}")
    return (
        f"At the {s.place} {s.a} buys {count} {s.goods} at {price} dollars each and a bag for {extra} dollars. "
        f"How many dollars does {s.a} spend?"
    )


def change(s: Story) -> str:
    """What is left of an amount after a price times a count."""
    count, price, left = s.n(2, 9), s.n(2, 8), s.n(3, 25)
    paid = count * price + left
    cost = s.work(f"{s.a} spends @ dollars on {s.goods}.", f"{count}*{price}")
    s.work("So @ dollars are left.", f"{paid}-{cost}")
    return (
        f"{s.a} goes to the {s.place} with {paid} dollars and buys {count} {s.goods} for {price} dollars apiece. "
        f"How much money is left?"
    )


def sharing(s: Story) -> str:
    """A total without what is kept, divided."""
    friends, each, kept = s.n(3, 9), s.n(4, 15), s.n(2, 12)
    total = friends * each + kept
    rest = s.work(f"After keeping {kept}, {s.a} has @ {s.goods} to give away.", f"{total}-{kept}")
    s.work("Each friend gets @.", f"{rest}/{friends}")
    return (
        f"{s.a} has {total} {s.goods}, keeps {kept} of them, and shares the others equally among {friends} friends. "
        f"How many does each friend get?"
    )


def ages(s: Story) -> str:
    """A multiple of an age, years later."""
    young, times, years = s.n(4, 12), s.n(2, 4), s.n(2, 15)
    older = s.work(f"{s.b} is @ years old now.", f"{young}*{times}")
    s.work(f"In {years} years {s.b} will be @.", f"{older}+{years}")
    return (
        f"{s.a} is {young} years old, and {s.b} is {times} times as old. How old will {s.b} be in {years} years?"
    )  # fmt: skip


def travel(s: Story) -> str:
    """Two distances at two speeds, added."""
    speed, hours, slower, more = s.n(30, 70), s.n(2, 5), s.n(5, 20), s.n(2, 4)
    first = s.work("The first part is @ kilometres.", f"{speed}*{hours}")
    pace = s.work("Then the bus drives at @ kilometres an hour.", f"{speed}-{slower}")
    second = s.work("The second part is @ kilometres.", f"{pace}*{more}")
    s.work("The whole way is @ kilometres.", f"{first}+{second}")
    return (
        f"A bus drives {hours} hours at {speed} kilometres an hour. In the rain it is {slower} kilometres an hour "
        f"slower, and drives {more} more hours. How many kilometres has it gone?"
    )


def saving(s: Story) -> str:
    """An amount a week, and a present."""
    weekly, weeks, gift = s.n(3, 15), s.n(4, 12), s.n(10, 40)
    saved = s.work(f"{s.a} saves @ dollars.", f"{weekly}*{weeks}")
    s.work("With the present that makes @ dollars.", f"{saved}+{gift}")
    return (
        f"{s.a} puts {weekly} dollars aside every week for {weeks} weeks, and then gets {gift} dollars from "
        f"{s.b}. How many dollars does {s.a} have?"
    )


def percent(s: Story) -> str:
    """A share that is lost, and the price of the rest."""
    rate, hundreds, price = s.rng.choice((5, 10, 20, 25, 40, 50)), s.n(1, 9), s.n(2, 6)
    total = 100 * hundreds
    damaged = s.work(f"@ {s.goods} are damaged.", f"{total}*{rate}/100")
    good = s.work(f"@ {s.goods} can be sold.", f"{total}-{damaged}")
    s.work("They bring in @ dollars.", f"{good}*{price}")
    return (
        f"A shop receives {total} {s.goods}, but {rate} percent of them are damaged. It sells the good ones for "
        f"{price} dollars each. How many dollars does it take in?"
    )


def fraction(s: Story) -> str:
    """A fraction given away, and some found."""
    part, share, more = s.rng.choice((2, 3, 4, 5)), s.n(4, 20), s.n(1, 10)
    total = part * share
    given = s.work(f"{s.a} gives away @ {s.goods}.", f"{total}/{part}")
    left = s.work(f"@ {s.goods} remain.", f"{total}-{given}")
    s.work("After the find there are @.", f"{left}+{more}")
    word = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}[part]
    return (
        f"{s.a} owns {total} {s.goods}, gives {word} of them to {s.b}, and later finds {more} more. How many {s.goods} "
        f"does {s.a} have now?"
    )


def baking(s: Story) -> str:
    """A product without what was eaten, divided into boxes."""
    trays, per, eaten, box = s.n(2, 6), s.n(8, 12), s.n(2, 9), s.rng.choice((2, 3, 4))
    eaten = eaten + (trays * per - eaten) % box
    made = s.work("There are @ buns.", f"{trays}*{per}")
    left = s.work("After the tasting @ are left.", f"{made}-{eaten}")
    s.work("They fill @ boxes.", f"{left}/{box}")
    return (
        f"{s.a} bakes {trays} trays of {per} buns. {s.b} and {s.c} eat {eaten} of them, and the rest are packed {box} "
        f"to a box. How many boxes are filled?"
    )


def work_rate(s: Story) -> str:
    """Two rates added, times hours."""
    fast, slow, hours = s.n(8, 20), s.n(3, 7), s.n(2, 8)
    both = s.work("Together they fold @ an hour.", f"{fast}+{slow}")
    s.work(f"In {hours} hours that is @.", f"{both}*{hours}")
    return (
        f"{s.a} folds {fast} leaflets an hour and {s.b} folds {slow}. How many leaflets do they fold together in "
        f"{hours} hours?"
    )


def reading(s: Story) -> str:
    """Pages of two days, the second a multiple, and those that remain."""
    first, times, left = s.n(8, 30), s.n(2, 3), s.n(15, 90)
    second = s.work("On the second day it is @ pages.", f"{first}*{times}")
    read = s.work("In two days it is @ pages.", f"{first}+{second}")
    s.work("Therefore @ pages remain.", f"{read + left}-{read}")
    return (
        f"{s.a} reads {first} pages of a book on the first day and {times} times as many on the second. The book has "
        f"{first + first * times + left} pages. How many pages remain?"
    )


def garden(s: Story) -> str:
    """Rows of plants without the dead, times their fruit."""
    rows, plants, dead, fruit = s.n(3, 9), s.n(4, 10), s.n(1, 6), s.n(2, 7)
    planted = s.work("There were @ plants.", f"{rows}*{plants}")
    alive = s.work("@ survived the frost.", f"{planted}-{dead}")
    s.work("They bear @ tomatoes.", f"{alive}*{fruit}")
    return (
        f"{s.a} sets out {rows} rows of {plants} tomato plants. Frost kills {dead} of them, and every other plant "
        f"bears {fruit} tomatoes. How many tomatoes are there?"
    )


def tickets(s: Story) -> str:
    """Two prices, each times a count, added."""
    adults, price, children, less = s.n(2, 6), s.n(8, 20), s.n(2, 8), s.n(2, 6)
    grown = s.work("The adults pay @ dollars.", f"{adults}*{price}")
    cheap = s.work("A child's ticket costs @ dollars.", f"{price}-{less}")
    small = s.work("The children pay @ dollars.", f"{children}*{cheap}")
    s.work("All of them pay @ dollars.", f"{grown}+{small}")
    return (
        f"A ticket to the fair costs {price} dollars, and {less} dollars less for a child. How many dollars do "
        f"{adults} adults and {children} children pay?"
    )


STORIES: tuple[Callable[[Story], str], ...] = (
    shopping, change, sharing, ages, travel, saving, percent, fraction, baking, work_rate, reading, garden, tickets,
)  # fmt: skip


def _final(text: str) -> float | None:
    marked = text.rpartition("####")[2] if "####" in text else text
    numbers = re.findall(r"-?\d[\d,]*\.?\d*", marked)
    if not numbers:
        return None
    return float((numbers[0] if "####" in text else numbers[-1]).replace(",", "").rstrip("."))
