"""Whose code runs: the calls that could run a model's own, task files, pickles; and names that stay in their folder."""

from __future__ import annotations

import ast
import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Ilu, present
from workers import command

import ilu_cli
from ilu_cli import trust
from ilu_cli.data.root import in_root, locate
from ilu_cli.errors import UnavailableError, UsageError
from ilu_cli.paths import as_name, is_hub_name, leads_out, problem_of_name, problem_of_path
from ilu_cli.report.document import Block, Code, Document, Notes, Section, Table, Text, to_html
from ilu_cli.report.warnings import foreign_code
from ilu_cli.runs.files import weight_files
from ilu_cli.runs.store import Store

FILES = sorted(Path(ilu_cli.__file__).parent.rglob("*.py"))
LOADERS = {"from_pretrained", "from_config"}
SAID = {"False", "trust.remote()"}


def calls(text: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))


def unsaid(text: str) -> list[int]:
    """The lines of calls that could run a model's or a dataset's code and do not say whether they may.

    peft takes no such argument: a model's code is the base's, which is loaded before. `load_dataset(ref, …)` is ours.
    """
    found = []
    for call in calls(text):
        name = ast.unparse(call.func)
        loads = name.rpartition(".")[2] in LOADERS and not name.startswith("PeftModel.")
        if loads or name == "library().load_dataset":
            said = {k.arg: ast.unparse(k.value) for k in call.keywords}.get("trust_remote_code")
            found += [] if said in SAID else [call.lineno]
    return found


def risky(text: str) -> list[int]:
    """The lines that read pickles or unsafe YAML, or run text as code or in a shell."""
    found = []
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] + [getattr(node, "module", None) or ""]
            found += (
                [node.lineno] if {n.partition(".")[0] for n in names} & {"pickle", "dill", "joblib", "marshal"} else []
            )
        if not isinstance(node, ast.Call):
            continue
        name, said = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        safe_yaml = said.get("Loader") in ("_Loader", "PlainLoader")
        bad = (
            name in ("eval", "exec", "compile", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load")
            or (name == "torch.load" and said.get("weights_only") != "True")
            or (name.endswith("np.load") and said.get("allow_pickle") != "False")
            or (name in ("yaml.load", "yaml.compose") and not safe_yaml)
            or "read_pickle" in name
            or said.get("shell", "False") != "False"
        )
        found += [node.lineno] if bad else []
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(Path(ilu_cli.__file__).parent)))
def test_every_load_says_whether_code_may_run_and_nothing_reads_pickles(path: Path) -> None:
    text = path.read_text()
    assert unsaid(text) == []
    assert risky(text) == []


def test_the_rules_find_what_they_are_for() -> None:
    assert unsaid("AutoModel.from_pretrained(x)\nAutoConfig.from_pretrained(x, trust_remote_code=True)") == [1, 2]
    assert unsaid("library().load_dataset(x)\nA.from_config(c, trust_remote_code=trust.remote())") == [1]
    for line in ("torch.load(f)", "eval(x)", "import pickle", "yaml.load(x, Loader=yaml.Loader)", "run(x, shell=True)",
                 "from joblib import load", "np.load(f)", "pd.read_pickle(f)"):  # fmt: skip
        assert risky(line) == [1], line


def test_what_loads_in_the_package_is_found() -> None:
    """So that the rule above cannot hold by finding nothing."""
    loads = [c for p in FILES for c in calls(p.read_text()) if ast.unparse(c.func).rpartition(".")[2] in LOADERS]
    assert len(loads) >= 8


def test_the_readers_of_yaml_make_no_objects() -> None:
    from ilu_cli.recipe.harness import PlainLoader
    from ilu_cli.recipe.yaml_text import YamlError, read_yaml

    text = '!!python/object/apply:os.system ["true"]'
    with pytest.raises(yaml.YAMLError):
        yaml.load(text, Loader=PlainLoader)
    with pytest.raises(YamlError):
        read_yaml(text)


EVIL = """from pathlib import Path
Path({mark!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM
class C(LlamaConfig):
    model_type = "own"
class M(LlamaForCausalLM):
    config_class = C
"""
RECIPE = """command: unlearn
objective: {name: grad_diff}
forget: {data: {name: capitals, limit: 8}}
retain: {name: nll, data: {name: elements, limit: 8}}
train: {steps: 1, lr: 1.0e-3}
"""


@pytest.fixture
def own(tiny: Path, tmp_path: Path) -> Path:
    """A model that brings Python code along, which leaves a mark where it runs."""
    folder = shutil.copytree(tiny, tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(EVIL.format(mark=str(tmp_path / "ran")))
    (tmp_path / "r.yaml").write_text(RECIPE)
    return folder


@pytest.mark.slow
def test_a_models_own_code_runs_only_if_each_command_says_so(own: Path, tmp_path: Path, ilu: Ilu) -> None:
    """In processes of their own, in which nobody has registered the model's classes; they are told yes to all."""
    run_alone = functools.partial(command, tmp_path, told="y\n" * 20)
    ran = tmp_path / "ran"
    for more in (["--dry-run"], []):
        done = run_alone("unlearn", "--recipe", "r.yaml", "--model", own, *more)
        assert done.returncode == 2 and "evil.M" in done.stderr and "--trust-remote-code" in done.stderr
        assert not ran.exists()
    done = run_alone("unlearn", "--recipe", "r.yaml", "--model", own, "--trust-remote-code")
    assert done.returncode == 0, done.stderr
    assert ran.exists()
    run = Store().get(done.stdout.strip())
    assert run.manifest.trust == {"remote_code": True}
    assert {"evil.py", "config.json"} <= run.manifest.beside.keys()
    assert "## Code that was run" in (run.path / "README.md").read_text()
    page = ilu("report", run.path, "--json")
    assert "Code of others ran" in Path(json.loads(page.out)["html"]).read_text()
    ran.unlink()
    for args in (["eval", run.id, "--alone"], ["attack", run.id, "--dry-run"], ["taskvec", run.id]):
        child = run_alone(*args)
        assert child.returncode == 2 and "--trust-remote-code" in child.stderr, child.stderr
    assert not ran.exists()
    child = run_alone("eval", run.id, "--bench", "capitals", "--limit", 4, "--trust-remote-code")
    assert child.returncode == 0, child.stderr


def test_a_models_code_is_hashed_and_not_taken_from_elsewhere(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ilu_cli.models.subject import find_model

    before = find_model(str(own)).digest
    monkeypatch.setenv(trust.REMOTE, "1")
    first = find_model(str(own)).digest
    (own / "evil.py").write_text("# other code")
    assert len({before, first, find_model(str(own)).digest}) == 3
    config = json.loads((own / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "some/body--evil.C"}
    (own / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="some/body--evil"):
        find_model(str(own))


def test_what_was_said_is_forgotten_after_the_command(own: Path, ilu: Ilu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a command before nor the shell's environment says it for a later one."""
    monkeypatch.setenv(trust.REMOTE, "1")
    assert ilu("unlearn", "--recipe", "r.yaml", "--model", own, "--dry-run").code == 2
    assert not trust.remote()


def test_a_plug_in_is_recorded_and_resuming_asks_for_the_same() -> None:
    recorded: trust.Trusted = {"remote_code": True, "code": {"x.py": "a" * 64}}
    assert present(foreign_code("run", recorded)).text == (
        f"Code of others ran in run: Python code that the model brings along (`--trust-remote-code`); `x.py`: sha256 "
        f"`{'a' * 64}`."
    )
    assert foreign_code("run", {}) is None
    with pytest.raises(UsageError, match="brings Python code"):
        trust.check_same(recorded, "run r")
    with pytest.raises(UsageError, match=r"x\.py"):
        trust.check_same({"code": recorded["code"]}, "run r")


def test_a_plug_in_of_the_command_line_is_consent_and_is_recorded(tiny: Path, tmp_path: Path, ilu: Ilu) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "mine.py").write_text("# nothing\n")
    done = ilu("unlearn", "--recipe", "r.yaml", "--model", tiny, "--plugin", "mine.py")
    assert done.code == 0, done.err
    run = Store().get(done.out.strip())
    assert run.manifest.trust == {"code": {"mine.py": trust.digest(tmp_path / "mine.py")}}
    run.manifest.status = "failed"
    run.save()
    refused = ilu("unlearn", run.id, "--resume")
    assert refused.code == 2 and "mine.py" in refused.err and "--plugin" in refused.err


TASK = {
    "task": "t", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "d.jsonl"}}, "test_split": "test",
    "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": ["a", "b"], "doc_to_target": 0,
    "metric_list": [{"metric": "acc"}], "metadata": {"version": 1},
}  # fmt: skip
MARK = "__import__('pathlib').Path('ran').touch()"


def task_file(folder: Path, **keys: object) -> Path:
    (folder / "d.jsonl").write_text('{"q": "one"}\n{"q": "two"}\n')
    (folder / "evil.py").write_text(f"{MARK}\ndef f(doc): return 'x'\n")
    text = yaml.safe_dump(TASK | keys).replace("'!f'", "!function evil.f")
    (folder / "t.yaml").write_text(text)
    return folder / "t.yaml"


REFUSED: dict[str, dict[str, Any]] = {
    "a function": {"doc_to_text": "!f"},
    "a function far inside": {"metric_list": [{"metric": "!f"}]},
    "an include from elsewhere": {"include": "../other.yaml"},
    "an absolute include": {"include": "/etc/passwd"},
    "a file above": {"dataset_kwargs": {"data_files": {"test": "../d.jsonl"}}},
    "a file elsewhere": {"dataset_kwargs": {"data_files": ["/etc/hosts"]}},
    "a file of the network": {"dataset_kwargs": {"data_files": "https://example.invalid/d.jsonl"}},
    "a class": {"class": "os.path"},
    "a prompt from elsewhere": {"use_prompt": "promptsource:x"},
    "a metric of the hub": {"metric_list": [{"metric": "./evil"}]},
    "a metric that is code": {"metric_list": [{"metric": "acc", "hf_evaluate": True}]},
    "code of the model": {"unsafe_code": True},
    "a database": {"dataset_path": "sql", "dataset_kwargs": {"sql": "x", "con": "sqlite:///x.db"}},
    "a template": {"doc_to_text": "{{ cycler.__init__.__globals__.os.system('touch ran') }}"},
    "a template of a choice": {"doc_to_choice": "{{ [''.__class__.__mro__[1].__subclasses__()|length, q] }}"},
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_task_file_that_runs_code_or_leaves_its_folder_is_refused(
    what: str, tiny: Path, tmp_path: Path, ilu: Ilu
) -> None:
    task_file(tmp_path, **REFUSED[what])
    for more in (["--dry-run"], []):
        done = ilu("eval", tiny, "--bench", "t.yaml", *more)
        assert done.code == 2, done.err
        assert "unexpected" not in done.err
        assert not (tmp_path / "ran").exists()


def test_a_task_file_that_is_named_runs_and_is_recorded(tiny: Path, tmp_path: Path, ilu: Ilu) -> None:
    task_file(tmp_path, doc_to_text="!f")
    other = shutil.copy(tmp_path / "t.yaml", tmp_path / "other.yaml")
    assert ilu("eval", tiny, "--bench", "t.yaml", "--trust-code", other, "--dry-run").code == 2
    assert not (tmp_path / "ran").exists()
    done = ilu("eval", tiny, "--bench", "t.yaml", "--trust-code", "t.yaml", "--json")
    assert done.code == 0, done.err
    assert (tmp_path / "ran").exists()
    said = json.loads(done.out)["results"]["t.yaml"]["code"]
    assert set(said.values()) == {trust.digest(tmp_path / "t.yaml"), trust.digest(tmp_path / "evil.py")}
    assert ilu("eval", tiny, "--bench", "t.yaml", "--trust-code", "gone.yaml").code == 2


def test_an_include_is_looked_through(tiny: Path, tmp_path: Path, ilu: Ilu) -> None:
    task_file(tmp_path, doc_to_text="!f").rename(tmp_path / "inner.yaml")
    (tmp_path / "t.yaml").write_text("include: inner.yaml\ntask: t\n")
    done = ilu("eval", tiny, "--bench", "t.yaml", "--dry-run")
    assert done.code == 2 and "inner.yaml" in done.err and not (tmp_path / "ran").exists()


def test_a_plain_task_file_needs_no_word(tiny: Path, tmp_path: Path, ilu: Ilu) -> None:
    task_file(tmp_path, doc_to_text="{{ q.upper() | regex_replace('O', '0') }}",
              dataset_kwargs={"data_files": {"test": str(tmp_path / "d.jsonl")}})  # fmt: skip
    done = ilu("eval", tiny, "--bench", "t.yaml", "--json")
    assert done.code == 0, done.err
    assert "code" not in json.loads(done.out)["results"]["t.yaml"]
    rows = next(tmp_path.rglob("t.rows.jsonl")).read_text().splitlines()
    assert [json.loads(r)["question"] for r in rows] == ["0NE", "TW0"]


BAD_NAMES = ["", ".", "..", "a/b", "../a", "/a", "a\\b", "~", "~a", "a\0b", "a\nb", "C:", "c:a", "con", "NUL.txt",
             "com1", "LPT9.json", "aux ", "a.", "a ", "a" * 256, "é" * 128, 'a"b', "a*", "a?"]  # fmt: skip
GOOD_NAMES = ["a", "a.b", "console", "com", "com10", "nul_", ".hidden", "a" * 255, "wmdp-bio", "été", "a b"]


def test_names_that_are_one_file() -> None:
    assert [n for n in BAD_NAMES if not problem_of_name(n)] == []
    assert [n for n in GOOD_NAMES if problem_of_name(n)] == []


def test_names_made_of_others() -> None:
    assert as_name("a/b\\..:c d\n") == "a_b_.._c_d_"
    assert as_name("wmdp-bio@40") == "wmdp-bio@40"
    run = Store().create("attack", "../x\\y: z")
    assert run.path.parent == Store().root and run.id.startswith("attack-.._x_y_z-")


def test_a_pipeline_is_not_called_what_is_no_folder(tmp_path: Path, ilu: Ilu) -> None:
    for name, said in ("..", "should match"), ("con", "folder would be called"), ("a.", "folder would be called"):
        text = f"command: pipeline\nname: '{name}'\nmethods: {{m: {{recipe: quickstart-rmu}}}}\nsuite: quick\n"
        (tmp_path / "p.yaml").write_text(text)
        done = ilu("pipeline", "p.yaml", "--dry-run")
        assert done.code == 2 and said in done.err, done.err


def test_no_part_of_a_datasets_name_leaves_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root" / "set").mkdir(parents=True)
    (tmp_path / "train.jsonl").write_text('{"text": "x"}\n')
    monkeypatch.setenv("ILU_DATA", str(tmp_path / "root"))
    assert in_root(["..", str(tmp_path)], None, "train") is None
    for config, split in (("../..", "train"), (None, "../../train"), (str(tmp_path), "train")):
        with pytest.raises(UnavailableError, match="no config or split"):
            in_root(["set"], config, split)


def test_paths_that_stay_below_a_folder() -> None:
    bad = ["", "/a", "..", "../a", "a/../../b", "a/..", "~/a", "C:/a", "C:a", "\\a", "a\\..\\b", "//host/x", "a\0"]
    assert [p for p in bad if not problem_of_path(p)] == []
    assert [p for p in ("a", "a/b", "data/*.parquet", "**/x-[0-9]*", "a..b/c", "./a") if problem_of_path(p)] == []


def test_names_of_the_hub() -> None:
    bad = ["a", "../a", "a/..", "./a", "a/b/c", "a/-b", "-a/b", "a/b.", "a--b/c", "a/b..c", "a/con", "a/nul.x", "a b/c"]
    assert [n for n in bad if is_hub_name(n)] == []
    assert all(map(is_hub_name, ["openai/gsm8k", "HuggingFaceTB/SmolLM2-135M-Instruct", "a/b.c_d-e", "cais/wmdp"]))


def test_a_link_that_leads_out(tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text('{"text": "x"}\n')
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "own.jsonl").write_text('{"text": "x"}\n')
    (folder / "in.jsonl").symlink_to(folder / "own.jsonl")
    (folder / "out.jsonl").symlink_to(tmp_path / "secret.jsonl")
    assert [leads_out(folder / f"{n}.jsonl", folder) for n in ("own", "in", "out")] == [False, False, True]
    snapshot = tmp_path / "models--a--b" / "snapshots" / "rev"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "f").touch()
    (snapshot / "x.json").symlink_to("../../blobs/f")
    (snapshot / "y.json").symlink_to(tmp_path / "secret.jsonl")
    assert [leads_out(snapshot / f"{n}.json", snapshot) for n in "xy"] == [False, True]


@pytest.mark.parametrize("named", ["../secret.jsonl", "{0}/secret.jsonl", "out.jsonl", "a/../../secret.jsonl"])
def test_a_readme_names_no_file_outside_of_its_folder(named: str, tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_text('{"text": "x"}\n')
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "out.jsonl").symlink_to(tmp_path / "secret.jsonl")
    files = [{"split": "train", "path": named.format(tmp_path)}]
    head = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]})
    (folder / "README.md").write_text(f"---\n{head}---\n")
    with pytest.raises(UnavailableError, match=r"leads out|does not begin|outside"):
        locate(folder, None, "train")


@pytest.mark.parametrize("shard", ["../model.safetensors", "/tmp/model.safetensors", "link.safetensors"])
def test_an_index_names_no_weights_outside_of_its_folder(shard: str, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    shutil.copy(tiny / "model.safetensors", tmp_path / "model.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(UnavailableError, match=r"leads out|does not begin|outside"):
        weight_files(folder)


def test_a_plug_in_gives_its_idea_a_name_that_is_a_file() -> None:
    from ilu_cli.registry import task

    with pytest.raises(UsageError, match="slash"):
        task(name="../x")(type("X", (), {}))


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'`</style></title>&"


def test_the_page_escapes_what_is_not_its_own_and_forbids_the_rest() -> None:
    blocks: list[Block] = [
        Text(HOSTILE),
        Table([HOSTILE], [[HOSTILE, HOSTILE]], HOSTILE),
        Code(HOSTILE, HOSTILE),
        Notes([HOSTILE]),
    ]
    page = to_html(Document(HOSTILE, HOSTILE, HOSTILE, [Section(HOSTILE, blocks)]))
    head, _, body = page.partition("<title>")
    assert "default-src 'none'" in head and "script-src" not in head  # so that no script runs at all
    assert "<script" not in page and "<img" not in page and "onerror=alert(1)>" not in page
    assert "://" not in page and page.count("</title>") == 1 and page.count("</style>") == 1
    assert body.count("&lt;script&gt;") == 13  # title twice, meta, headline, section; 8 in its blocks
