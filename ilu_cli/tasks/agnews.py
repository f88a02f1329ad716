from __future__ import annotations

import random

from ilu_cli.registry import task
from ilu_cli.tasks import Example, Fields, Task, fill, words


@task()
class AGNews(Task):
    """Topic of news items: world, sports, business, or science and technology (AG News).

    A row: {'text': 'Rain Stops Hockey (Northwire) HOLLOWAY - The derby between the Wanderers and the Drovers
    was moved to Friday.', 'label': 1}
    """

    hub, config = "fancyzhx/ag_news", None
    splits = {"train": "train", "test": "test"}
    fields = {"text": str, "label": int}
    labels = (" World", " Sports", " Business", " Sci/Tech")

    def example(self, row: Fields) -> Example:
        return Example(f"News: {row['text']}\nTopic:", self.labels[row["label"]], self.labels)

    def generate(self, rng: random.Random) -> Fields:
        label = rng.randrange(4)
        story, tail = rng.choice(NEWS[label]), rng.choice(("", *TAILS[label]))
        head, lead = fill(f"{story} {tail}".strip(), WORDS, rng).split("|")
        text = fill(f"{title(head)} ({{agency}}) {{town}} - {lead}", WORDS, rng)
        return {"text": text, "label": label}


WORDS = {
    "agency": words("Northwire,Meridian Press,Harbour News,Civic Report,Union Dispatch,Daily Ledger,Coast Bulletin"),
    "town": words(
        "MARLOW BAY,EASTERFORD,PORT HELLEN,KESTREL,NEW ARDEN,HOLLOWAY,SANTA VERA,LOCHMERE,GRAND RAVEN,TALLOW CREEK,"
        "OTTERWICK"
    ),
    "person": words(
        "Ada Morlen,Piet Hanraty,Lucia Farrow,Omar Belling,Greta Stonor,Hugo Vantage,Mei Corran,Ivo Pellard,Nora Quill,"
        "Tomas Ridley,Selma Aske,Dario Finch"
    ),
    "firm": words("Norvane,Ostrell,Brightmoor,Calder & Voss,Terranova,Ellwick,Pinecrest,Halden,Quantara,Rovik"),
    "team": words("Harriers,Blue Foxes,Wanderers,Lamplighters,Ironsides,Night Owls,Drovers,Stonebreakers,Comets"),
    "day": words("Monday,Tuesday,Wednesday,Thursday,Friday,Saturday,Sunday"),
    "few": words("two,three,four,five,six,seven,eight,nine"),
    "many": words("12,15,18,21,24,30,36,40,55,60,72,85"),
    "share": words("3,4,5,6,7,8,9,11,14,17,22"),
    "group": words("rebels,farmers,dock workers,teachers,monks,students,border guards,fishermen,miners,nurses"),
    "place": words("the northern province,the delta,the hill districts,the islands,the border region,the old port"),
    "leader": words("president,prime minister,foreign minister,defence minister,interim governor,chief negotiator"),
    "disaster": words("quake,flood,storm,landslide,ferry accident,train crash"),
    "game": words("football,hockey,cricket,handball,rugby,volleyball"),
    "sport": words("cycling,rowing,swimming,speed skating,running,skiing"),
    "stage": words("semi-final,opening round,cup final,last group match,play-off,derby,season opener,quarter-final"),
    "good": words("coffee,timber,wheat,copper,natural gas,crude oil,cotton,aluminium,sugar"),
    "trade": words("car maker,brewer,chemicals group,drug maker,food company,steel maker,paper maker,toy maker"),
    "device": words("telescope,battery,chip,satellite,drone,sensor,robot arm,camera,laser"),
    "software": words("browser,search engine,mail program,music player,chat program,word processor,photo album"),
    "animal": words("frog,beetle,river fish,bat,orchid,lizard,spider,parrot"),
    "world": words("moon,comet,planet,asteroid"),
}


# Label → stories, headline and lead; a slot of the same name has the same word in both.
NEWS: dict[int, tuple[str, ...]] = {
    0: (
        "talks with {group} collapse|The {leader} left a meeting with {group} on {day} without a deal.",
        "protest turns violent|Some {many} people were hurt on {day} when {group} clashed with police in {place}.",
        "troops begin to leave {place}|Peacekeepers said on {day} that the first {few} convoys had crossed the line.",
        "{leader} promises elections|Votes will be held within {few} months after weeks of protest by {group}.",
        "{disaster} kills {many}|Rescue teams searched {place} for survivors on {day} as hopes faded.",
        "calls to free {person}|Diplomats urged the {leader} on {day} to release the jailed opposition figure.",
        "{leader} survives vote|The government kept its majority on {day} by only {few} votes in parliament.",
        "aid reaches {place}|A convoy with food for {many} villages got through on {day} after a truce with rebels.",
        "hostages freed|Gunmen let {few} foreign journalists go on {day} after talks with the {leader}.",
        "cease-fire holds in {place}|The truce between rebels and the army entered its second week on {day}.",
        "refugees flee {place}|More than {many} thousand people have crossed the river since {day}, aid workers said.",
        "bomb hits convoy in {place}|A roadside blast killed {few} soldiers on {day}, the army said.",
    ),
    1: (
        "{team} edge {team2}|{person} scored {few} times on {day} and decided the {stage} before a full house.",
        "{team} go top|The side beat the {team2} on {day} and leads the table by {few} points.",
        "{person} out for {few} months|A torn knee ligament will keep the captain of the {team} off the pitch.",
        "record falls in {sport} final|{person} took the title on {day}, {few} seconds ahead of {person2}.",
        "coach of {team} resigns|{person} stepped down on {day}, hours after the {stage} was lost to the {team2}.",
        "fans queue for {stage}|Tickets for the game between the {team} and the {team2} sold out in {few} hours.",
        "{team} sign {person}|The striker leaves the {team2} for {few} seasons and may play on {day}.",
        "upset in {game} cup|The {team}, {few} divisions lower, knocked the {team2} out in the {stage} on {day}.",
        "rain stops {game}|The {stage} between the {team} and the {team2} was moved to {day}.",
        "referee under fire|The {team} blamed {few} wrong calls for their defeat by the {team2} in the {stage}.",
        "{person} wins {sport} gold|The favourite pulled away from {person2} with {few} minutes left on {day}.",
        "{person} fails drug test|Officials banned the {sport} champion on {day} for {few} years.",
    ),
    2: (
        "{firm} profit rises {share} percent|The {trade} beat forecasts in the quarter, helped by cheap {good}.",
        "shares slip on {good} prices|Stocks fell on {day}, with {firm} losing {share} percent in heavy trading.",
        "{firm} to buy {firm2}|The {trade} will pay {many} million dollars in cash and stock for its rival.",
        "{firm} cuts jobs|The {trade} will close {few} plants and lower its dividend, chief executive {person} said.",
        "rates left alone|The central bank pointed to weak demand for {good} on {day}; bonds gained, and {firm} rose.",
        "investors back {firm} split|Shareholders approved a plan by {person} to part with the {good} business.",
        "price of {good} hits new high|Contracts gained {share} percent on {day} after stocks shrank for {few} weeks.",
        "regulator studies {firm} deal|The purchase of {firm2} for {many} million dollars may hurt buyers of {good}.",
        "{firm} warns on sales|The {trade} expects {share} percent less revenue this year, and its shares fell.",
        "{firm} goes public|The {trade} raised {many} million dollars on {day}, less than {person} had hoped.",
        "workers at {firm} strike|Unions at the {trade} want {share} percent more pay after {few} years of cuts.",
        "{firm} names new chief|{person} takes over the {trade} on {day} from {person2}, who led it for {few} years.",
    ),
    3: (
        "new {animal} discovered|Biologists led by {person} reported the species on {day} after {few} years of work.",
        "{device} uses less power|A model built by {person} needs {share} percent less energy than older ones.",
        "flaw found in {software}|Users should install the update before {day}, security researchers at {firm} warned.",
        "probe reaches {world}|After {few} years in flight the spacecraft sent back {many} images on {day}.",
        "{software} blocks spam|Version {few} of the program by {firm} is free for home users and comes out on {day}.",
        "genes explain riddle of the {animal}|By comparing {many} animals, scientists saw how the trait evolved.",
        "worm spreads through {software}|Some {many} thousand computers were infected by {day}, {firm} said.",
        "phone reads handwriting|{person} showed a prototype on {day} that makes {share} percent fewer mistakes.",
        "ship maps the sea floor|Geologists took {many} soundings a minute and found {few} unknown volcanoes.",
        "longer life for the {device}|A coating found by chemists lets it run {few} times as long, {person} wrote.",
        "water seen on distant {world}|Astronomers caught the faint signal with {a few}-mirror telescope on {day}.",
        "{firm} opens its {software}|Programmers may change the code freely from {day} on, {person} told developers.",
    ),
}


# Label → sentences that may follow any lead of that label.
TAILS: dict[int, tuple[str, ...]] = {
    0: (
        "The {leader2} made no comment.",
        "Schools and shops in {place} stayed closed.",
        "Neighbouring governments called for calm.",
    ),
    1: (
        "Officials would say no more.",
        "Fans sang until midnight.",
        "{person3} called it the talk of the season.",
    ),
    2: (
        "Analysts were not surprised.",
        "Most brokers expect a quiet {day2}.",
        "{agency2} was first with the news.",
    ),
    3: (
        "Outside experts asked for more data.",
        "A full report is due on {day2}.",
        "Others in the field called it no surprise.",
    ),
}


SMALL = words("with,to,of,in,for,on,at,the")


def title(text: str) -> str:
    """Capitalise a headline."""
    return " ".join(w if w in SMALL and i else w[0].upper() + w[1:] for i, w in enumerate(text.split()))
