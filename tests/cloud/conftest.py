"""A real cloud for all tests of a run that need one, and the image of their box, which is built once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import condorpool
import pytest
import realcloud
from realcloud import RealCloud
from realkimbox import Kimbox


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """KIMBOX_HOME of the run, with the images of the box `minimal`, of the node, and of the box for jobs."""
    home = tmp_path_factory.mktemp("home", numbered=False)
    kimbox = Kimbox(home, tmp_path_factory.mktemp("build"))
    kimbox("build", "minimal")
    for spec in (realcloud.node_spec(1), realcloud.JOB_SPEC):
        (kimbox.folder / "kimbox.yaml").write_text(spec)
        kimbox("build")
        (kimbox.folder / "kimbox.lock").unlink()
    return home


@pytest.fixture(scope="session")
def condor_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a pool of HTCondor."""
    return condorpool.build(tmp_path_factory.mktemp("condor"))


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory, home: Path, condor_root: Path) -> Iterator[RealCloud]:
    """The cloud. The rest of the run is in its network, which reaches no mirror: images and roots are built before."""
    with realcloud.running(tmp_path_factory.mktemp("cloud") / "share") as cloud:
        yield cloud


@pytest.fixture
def logged(cloud: RealCloud) -> Iterator[None]:
    """The logs of the cloud are in the output of a test that fails."""
    yield
    print(cloud.logs())


@pytest.fixture(scope="module")
def kimbox(cloud: RealCloud, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kimbox]:
    """kimbox with a login into the cloud. At the end the cloud has nothing of its machines."""
    kimbox = Kimbox(home, tmp_path_factory.mktemp("kimbox"), variables={"OS_CLIENT_CONFIG_FILE": str(cloud.clouds)})
    yield kimbox
    for box in kimbox.json("list")["boxes"]:
        kimbox("destroy", "-y", box["name"])
    assert [] == cloud.left()
