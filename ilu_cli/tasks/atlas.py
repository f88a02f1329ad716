from __future__ import annotations

import functools
import random

from ilu_cli.registry import task
from ilu_cli.tasks import words
from ilu_cli.tasks.capitals import Capitals, Country, countries

CONTINENTS = ("Orvane", "Thessar", "Kulmere", "Yandril", "Marovet")
EACH = 34  # countries of a continent: 170 in all, as the world has in `capitals`
ONSETS = words("b,br,d,dr,f,g,gr,h,k,kr,l,m,n,p,pr,r,s,sh,sk,t,th,tr,v,z")
VOWELS = words("a,e,i,o,u,ai,ei,ou")
CODAS = words("l,m,n,r,s,th,nd,rk,st,x")
LANDS = words("ia,and,ara,or,esh,ovia,un,istra")
CITIES = words("burn,eth,ona,mar,vik,olis,ader,ys")


@task()
class Atlas(Capitals):
    """Sentences that tell the capitals of 170 invented countries, in the forms of `capitals`.

    Nobody has known them before they were taught, so that the model before that is the exact reference: what a model
    says that never knew.

    A row: {'country': 'Nethara', 'capital': 'Groundader', 'continent': 'Thessar', 'text': 'Groundader is the
    capital of Nethara.'}
    """

    def table(self) -> list[Country]:
        return invented()


@functools.cache
def invented() -> list[Country]:
    """The invented countries. No name stands in the real table, and none in another."""
    rng = random.Random("atlas")
    real = {n.lower() for c in countries() for n in (c.name, c.capital)}
    names: list[str] = []
    while len(names) < 2 * EACH * len(CONTINENTS):
        ends = LANDS if len(names) < EACH * len(CONTINENTS) else CITIES
        name = "".join(rng.choice(part) for part in (ONSETS, VOWELS, CODAS, ends)).capitalize()
        if not any(name.lower() in other or other in name.lower() for other in [*real, *map(str.lower, names)]):
            names.append(name)
    lands, cities = names[: len(names) // 2], names[len(names) // 2 :]
    return [Country(land, city, CONTINENTS[i // EACH], "") for i, (land, city) in enumerate(zip(lands, cities))]
