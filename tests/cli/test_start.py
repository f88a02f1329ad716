"""What a command does before its first step, counted: files hashed, packages imported, rows encoded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import Ilu, tiny_model, tiny_tokenizer

from ilu_cli.data import cache, encode
from ilu_cli.models import builtin, subject
from ilu_cli.runs import files
from ilu_cli.runs.files import WEIGHTS, weight_hashes, write_json

SMALL = ["--method", "rmu", "--set", "objective.layer=1", "--set", "train.params=['*.1.mlp.down_proj.weight']"]
SMALL += ["--steps", "1", "--set", "forget.batch=2", "--set", "retain.batch=2"]
OURS = {"ilu_cli", "typer", "rich", "pydantic", "pydantic_core", "platformdirs"}
BROUGHT = {"typing_inspection", "annotated_doc", "annotated_types", "shellingham"}  # by typer and pydantic
BARE = """
import json, sys, torch, transformers
transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
transformers.AutoTokenizer.from_pretrained(sys.argv[1])
print(json.dumps(sorted({m.partition(".")[0] for m in sys.modules})))
"""
UNLEARN = """
import json, sys
from ilu_cli.engine.loop import Trainer
def run(self):
    print(json.dumps(sorted({m.partition(".")[0] for m in sys.modules})))
    raise KeyboardInterrupt
Trainer.run = run
from ilu_cli.cli.app import main
main()
"""


def packages(code: str, *args: object) -> set[str]:
    """Those that are imported when the code prints them."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True)
    assert done.stdout, done.stderr
    return set(json.loads(done.stdout.splitlines()[0]))


@pytest.mark.slow
def test_the_first_step_needs_no_package_that_loading_the_model_does_not(tiny: Path) -> None:
    bare = packages(BARE, tiny)
    ours = packages(UNLEARN, "unlearn", "--model", tiny, *SMALL)
    own = {name for name in ours - bare if name not in sys.stdlib_module_names and not name.startswith("_")}
    assert own <= OURS | BROUGHT
    assert own >= {"ilu_cli", "pydantic"}


def test_weights_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, tokenizer = tmp_path / "cache" / "models" / "smollm2-135m", tiny_tokenizer()
    tiny_model(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    package = tmp_path / "tiny_weights"
    package.mkdir()
    for name in ("__init__.py", "tiny.gguf"):
        (package / name).touch()
    written = {"source": "tiny.gguf", "size": 0, "weights": weight_hashes(folder)}
    write_json(folder / "ilu.json", written)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ILU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(builtin.MODELS, "smollm2-135m", ("tiny_weights", "tiny.gguf", "hub/name"))
    read, hashed = Counter[str](), files.sha256

    def counted(path: Path) -> str:
        read[path.name] += 1
        return hashed(path)

    monkeypatch.setattr(files, "sha256", counted)
    assert subject.find_model("smollm2-135m").weights == written["weights"]
    assert read[WEIGHTS] == 1


def test_rows_are_encoded_once(tiny: Path, ilu: Ilu, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, original = list[str](), encode.encode_corpus

    def counted(tokenizer: object, examples: object, form: object, name: str) -> object:
        encoded.append(name)
        return original(tokenizer, examples, form, name)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "encode_corpus", counted)
    for _ in range(2):
        done = ilu("unlearn", "--model", tiny, *SMALL, "--dry-run")
        assert done.code == 0, done.err
    assert sorted(encoded) == ["capitals", "elements", "prose"]
