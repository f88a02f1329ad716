"""The loading code over mirrors of the published datasets, and what is said about data that is not as it should be."""

import pytest
from mirrors import HUB, hub_tasks, mirror, mirror_all

from ilu_cli import registry
from ilu_cli.data.sources import find_origin, load_dataset
from ilu_cli.recipe.specs import DataRef


@pytest.fixture(scope="module")
def mirrors(tmp_path_factory):
    return mirror_all(tmp_path_factory.mktemp("mirrors"))


@pytest.fixture
def root(mirrors, monkeypatch):
    monkeypatch.setenv("ILU_DATA", str(mirrors))
    return mirrors


def test_every_dataset_of_the_hub_has_a_mirror():
    assert {registry.task[n].obj.hub for n in hub_tasks()} == set(HUB)


@pytest.mark.parametrize("name", hub_tasks())
def test_a_published_dataset_loads_from_its_mirror(root, name):
    task = registry.task[name].obj()
    for ours, theirs in task.splits.items():
        data = load_dataset(DataRef(name=name, source="hub"), ours)
        record = data.record("forget")
        assert (record["source"], record["split"]) == ("path", theirs)
        assert record["path"].startswith(task.hub)
        assert len(data.rows) == (4 if name == "wikitext" else 12)
        for example in data.examples():
            assert example.target.strip()
            assert not example.choices or example.target in example.choices
    assert find_origin(DataRef(name=name), next(iter(task.splits))).source == "path"


@pytest.mark.parametrize("name", ["sst2", "mnli", "muse-news-raw", "tofu-forget10_perturbed", "agnews", "wmdp-bio"])
def test_a_mirror_without_its_readme_gives_the_same_rows(root, name, tmp_path, monkeypatch):
    task = registry.task[name].obj()
    split = next(reversed(task.splits))
    with_readme = load_dataset(DataRef(name=name), split)
    mirror(tmp_path / "bare", task.hub, readme=False)
    monkeypatch.setenv("ILU_DATA", str(tmp_path / "bare"))
    assert load_dataset(DataRef(name=name), split).fingerprint == with_readme.fingerprint
