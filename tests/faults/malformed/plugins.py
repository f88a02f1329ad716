"""Plug-ins that do not import, declare what cannot be, or end the process."""

from __future__ import annotations

from collections.abc import Iterator

from malformed.judge import Input

HEAD = "from ilu_cli.registry import attack, benchmark, defence, objective, regularizer, retain_term, task\n"
LOSS = '@objective(needs="nll", per="token")\n'
TEXTS: dict[str, str | bytes] = {
    "sys.exit(0)": "import sys; sys.exit(0)", "sys.exit(5)": "import sys; sys.exit(5)", "exit()": "raise SystemExit", "quit with text": "raise SystemExit('bye')",
    "syntax": "def f(:\n", "indent": "  x = 1\n y = 2\n", "NUL": b"x = 1\0", "no UTF-8": b"x = '\xff'\n", "raises": "raise ValueError('no')",
    "raises with markup": "raise ValueError('[/red] \\x1b[31m')", "1 / 0": "1 / 0", "recursion": "def f(): return f()\nf()", "no such import": "import nowhere_at_all",
    "no memory": "raise MemoryError", "KeyError": "{}['a']", "assert": "assert False", "StopIteration": "next(iter([]))", "OSError": "open('/nowhere/at/all')",
    "binary": b"\x7fELF\0\0\0", "deep": "(" * 500 + ")" * 500, "imports itself": "import p\np.x", "name error": "frobnicate",
    "no needs": HEAD + "@objective(per='token')\ndef f(view): 'x'\n", "unknown need": HEAD + "@objective(needs='frob', per='token')\ndef f(view): 'x'\n",
    "needs a list": HEAD + "@objective(needs=['nll'], per='token')\ndef f(view): 'x'\n", "no per": HEAD + "@objective(needs='nll')\ndef f(view): 'x'\n",
    "odd per": HEAD + "@objective(needs='nll', per='frob')\ndef f(view): 'x'\n", "unknown declaration": HEAD + "@objective(needs='nll', per='token', frob=1)\ndef f(view): 'x'\n",
    "positional": HEAD + LOSS + "def f(view, beta: float = 1): 'x'\n", "no annotation": HEAD + LOSS + "def f(view, *, beta=1): 'x'\n",
    "odd annotation": HEAD + LOSS + "def f(view, *, beta: 'frobnicate' = 1): 'x'\n", "a common key": HEAD + LOSS + "def f(view, *, name: str = 'x'): 'x'\n",
    "a known name": HEAD + "@objective(name='rmu', needs='nll', per='token')\ndef f(view): 'x'\n",
    "twice": HEAD + (LOSS + "def f(view): 'x'\n") + (LOSS + "def g(view): 'x'\n"),
    "attack without strength": HEAD + "@attack(access='weights')\ndef f(attempt): 'x'\n", "odd access": HEAD + "@attack(strength='a', access='frob')\ndef f(attempt): 'x'\n",
    "regulariser": HEAD + "@regularizer(needs='nll', per='token', least=0)\ndef f(view): 'x'\n", "retain": HEAD + "@retain_term()\ndef f(view): 'x'\n",
}  # fmt: skip


def inputs() -> Iterator[Input]:
    args = ["unlearn", "--model", "{model}", "--dry-run", "--plugin"]
    for name, text in TEXTS.items():
        yield Input(
            name,
            [*args, "p.py"],
            {"p.py": text},
            (2, 3, 5) if name in ("no memory", "OSError") else (2,),
            "p.py" if name != "no memory" else "memory",
        )
    for name in ("nowhere.py", "", ".", "p.txt", "p", "../p.py", "\x1b[31m.py"):
        yield Input(f"named {name!r}", [*args, name], {"p.txt": "x = 1", "p": "x = 1"}, (2,), "plug")
    for name in ("sys.exit(0)", "syntax", "raises", "no such import"):
        for command in (["list"], ["eval", "runs/u"], ["attack", "runs/u"]):
            yield Input(f"{command[0]}: {name}", [*command, "--plugin", "p.py"], {"p.py": TEXTS[name]}, (2,), "")
