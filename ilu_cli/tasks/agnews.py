from __future__ import annotations

import random

from ilu_cli.registry import task
from ilu_cli.tasks import Example, Row, Task, fill, words

WORDS = {
    "agency": words("Northwire,Meridian Press,Harbour News,Civic Report,Union Dispatch,Daily Ledger,Coast Bulletin"),
    "town": words(
        "MARLOW BAY,EASTERFORD,PORT HELLEN,KESTREL,NEW ARDEN,HOLLOWAY,SANTA VERA,LOCHMERE,GRAND RAVEN,TALLOW CREEK"
    ),
    "person": words(
        "Ada Morlen,Piet Hanraty,Lucia Farrow,Omar Belling,Greta Stonor,Hugo Vantage,Mei Corran,Ivo Pellard,Nora Quill,"
        "Tomas Ridley,Selma Aske,Dario Finch"
    ),
    "firm": words(
        "Norvane,Ostrell,Brightmoor,Calder & Voss,Terranova Foods,Ellwick,Pinecrest,Halden Steel,Quantara,Rovik"
    ),
    "team": words(
        "Harriers,Blue Foxes,Rangers of Kestrel,Lochmere United,Ironsides,Night Owls,River City,Stonebreakers,Comets"
    ),
    "day": words("Monday,Tuesday,Wednesday,Thursday,Friday,Saturday,Sunday"),
    "few": words("two,three,four,five,six,seven,eight,nine"),
    "many": words("12,15,18,21,24,30,36,40,55,60,72,85"),
    "share": words("3,4,5,6,7,8,9,11,14,17,22"),
    "group": words(
        "rebels,farmers,dock workers,teachers,monks,students,border guards,fishermen,miners,opposition members"
    ),
    "place": words(
        "the northern province,the delta,the hill districts,the disputed islands,the border region,the old port"
    ),
    "leader": words("president,prime minister,foreign minister,defence minister,interim governor,chief negotiator"),
    "sport": words("cycling,tennis,rowing,football,hockey,swimming,cricket,athletics,golf,handball"),
    "stage": words("semi-final,opening round,cup final,last group match,play-off,derby,season opener,quarter-final"),
    "good": words("coffee,timber,wheat,copper,natural gas,crude oil,cotton,aluminium,sugar"),
    "trade": words("retailer,airline,bank,insurer,car maker,brewer,chemicals group,shipping company,drug maker"),
    "device": words(
        "telescope,battery,chip,search engine,satellite,browser,drone,sensor,robot arm,console,mail program"
    ),
    "field": words("astronomers,biologists,engineers,chemists,physicists,programmers,geologists,climate researchers"),
    "find": words(
        "a new species of frog,water on a distant moon,an early human tool,a very hot planet,a flaw in memory chips"
    ),
}

# Label → stories, headline and lead; a slot of the same name has the same word in both.
NEWS: dict[int, tuple[str, ...]] = {
    0: (
        "Talks With {group} Collapse|The {leader} left a meeting with {group} on {day}, and fighting in {place} went on.",
        "Protest Turns Violent|At least {many} people were hurt on {day} when {group} clashed with police in {place}.",
        "Troops Begin to Leave {place}|Peacekeepers said on {day} that {group} had let {few} convoys pass.",
        "{leader} Promises Elections|Votes will be held within {few} months after weeks of protest by {group} in {place}.",
        "Quake Kills {many}|Rescue teams searched {place} on {day} after the second earthquake in {few} weeks.",
        "Calls to Free {person}|Diplomats urged the {leader} on {day} to release the jailed spokeswoman of the {group}.",
        "{leader} Survives No-Confidence Vote|The government kept its majority on {day} by only {few} votes in parliament.",
        "Floods Cut Off {place}|An aid convoy with food for {many} villages got through on {day} with the help of {group}.",
        "Hostages Freed|{group} let {few} foreign journalists go on {day} after talks with the {leader}.",
        "Cease-Fire Holds|The truce between {group} and the army in {place} entered its second week on {day}.",
    ),
    1: (
        "{team} Edge {team2}|{person} scored {few} times on {day} and decided the {stage} before a full house.",
        "{team} Go Top|The side won again on {day}, beating the {team2}, and leads the table by {few} points.",
        "{person} Out for the Season|A torn knee ligament keeps the captain of the {team} away for {few} months.",
        "Record Falls in {sport} Final|{person} took the title on {day}, {few} seconds ahead of {person2}.",
        "Coach of {team} Resigns|{person} left on {day} after losing the {stage} to the {team2} by {few} goals.",
        "Fans Queue for {stage}|Tickets for the match between the {team} and the {team2} were gone within {few} hours.",
        "{team} Sign {person}|The striker comes from the {team2} for {few} seasons and may play on {day}.",
        "Upset in {sport}|Unseeded {person} beat {person2} on {day} and meets the champion in the {stage}.",
        "Rain Stops {sport}|The {stage} will go on on {day}, with {person} {few} points ahead of {person2}.",
        "Referee Under Fire|The {team} blamed {few} wrong decisions for their defeat by the {team2} in the {stage}.",
    ),
    2: (
        "{firm} Profit Rises {share} Percent|The {trade} beat forecasts in the quarter, helped by cheap {good}.",
        "Shares Slip on {good} Prices|Stocks fell on {day}, with {firm} losing {share} percent in heavy trading.",
        "{firm} to Buy {firm2}|The {trade} will pay {many} million dollars in cash and stock for its rival.",
        "{firm} Cuts Jobs|The {trade} will close {few} plants and lower its dividend, chief executive {person} said.",
        "Rates Left Alone|The central bank cited weak demand for {good} on {day}; bonds gained, and {firm} rose.",
        "Investors Back {firm} Split|Shareholders approved a plan by {person} to part with the {good} business.",
        "{good} at New High|The price rose {share} percent on {day} after stocks shrank for {few} weeks.",
        "Regulator Looks at {firm} Deal|The purchase of {firm2} for {many} million dollars may hurt buyers of {good}.",
        "{firm} Warns on Sales|The {trade} expects {share} percent less revenue this year, and its shares fell on {day}.",
        "{trade} {firm} Goes Public|The offering on {day} brought in {many} million dollars, less than {person} had hoped.",
    ),
    3: (
        "Researchers Find {find}|{field} led by {person} reported the discovery on {day} after {few} years of work.",
        "{device} Uses Less Power|A model developed by {field} needs {share} times less energy than older ones.",
        "Flaw in Popular {device}|Users should install the update before {day}, security researchers at {firm} warned.",
        "Probe Sends Back Pictures|After {few} years in flight the spacecraft delivered {many} images, which {field} study now.",
        "New {device} Blocks Spam|Version {few} of the software by {firm} is free for home users and out on {day}.",
        "Genes Explain an Old Riddle|By comparing {many} animals, {field} found out how the trait evolved.",
        "Worm Spreads by Mail|The program had reached {many} thousand computers by {day}, said {field} at {firm}.",
        "{device} Reads Handwriting|{person} showed a prototype on {day} that makes {share} percent fewer mistakes.",
        "{field} Map the Sea Floor|A {device} took {many} soundings a minute and came upon {find} on the way.",
        "Longer Life for the {device}|A coating found by {field} lets it run {few} times as long, {person} wrote on {day}.",
    ),
}


@task()
class AGNews(Task):
    """Topic of news items: world, sports, business, or science and technology (AG News)."""

    hub = "fancyzhx/ag_news"
    fields = {"text": str, "label": int}
    labels = (" World", " Sports", " Business", " Sci/Tech")

    def example(self, row: Row) -> Example:
        return Example(f"News: {row['text']}\nTopic:", self.labels[row["label"]], self.labels)

    def generate(self, rng: random.Random) -> Row:
        label = rng.randrange(4)
        head, lead = rng.choice(NEWS[label]).split("|")
        text = fill(f"{head} ({{agency}}) {{town}} - |{lead}", WORDS, rng)
        head, lead = text.split("|")
        return {"text": head[0].upper() + head[1:] + lead[0].upper() + lead[1:], "label": label}
