"""Fixtures: one cluster that reading tests share, and a factory for the
tests that break things."""
import json
import os
import shutil

import pytest

from processes import MODEL_NAME, ROOT, Cluster
from wide_model import wide_model


@pytest.fixture(scope="session", autouse=True)
def own_caches(tmp_path_factory):
    """No test sees or fills the user's caches."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("caches"))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    one = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        yield one.start()
    finally:
        one.stop()


@pytest.fixture
def make_cluster(tmp_path):
    made = []

    def make(change=None, ready=True, **arguments):
        """change: bends the cluster before it starts."""
        folder = tmp_path / f"cluster{len(made)}"
        folder.mkdir()
        made.append(Cluster(folder, **arguments))
        if change:
            change(made[-1])
        return made[-1].start(ready)

    yield make
    for one in made:
        try:
            one.stop()
        finally:
            print(one.logs())


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model of 805 MB whose fused tensors have 134 MB."""
    folder = wide_model(tmp_path_factory.mktemp("wide") / MODEL_NAME, 4, 8192)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def goldens():
    """The official implementation's outputs, by name."""
    prompts = json.loads((ROOT / "tests/golden/prompts.json").read_text())
    return {prompt["name"]: prompt for prompt in prompts}
