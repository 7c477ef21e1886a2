"""Images: unpacked, and run in the sandbox in place of the machine's own system."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.harness import LocalHarness, need_sandbox
from tests.engine.root_folder import unpack

from sublet.core.clock import SystemClock
from sublet.core.errors import Refused
from sublet.core.ids import new_id
from sublet.engine.images import Images, refusal
from sublet.engine.local import LocalEngine
from sublet.engine.port import Node, Phase, Workload

SCRIPT = (
    "cat /etc/os-release /etc/hostname; id -un; ls /usr/bin; ls /; touch /usr/x || echo read-only"
)


@pytest.fixture
def images(folder: Path) -> Images:
    made = Images(root=folder / "images")
    unpack(made.root / "toolbox")
    return made


class WithImages(LocalHarness):
    images: Images

    def another(self, *, sandboxed: bool | None = None) -> LocalEngine:
        del sandboxed
        return LocalEngine(
            self.root,
            nodes=[Node(name="here", gpu_model="cpu", gpus=4, memory_bytes=1 << 30)],
            clock=SystemClock(),
            sandbox=need_sandbox(),
            unsafe_no_sandbox=False,
            images=self.images,
        )


@pytest.fixture
def world(folder: Path, images: Images) -> Iterator[WithImages]:
    WithImages.images = images
    harness = WithImages(folder / "engine", sandboxed=True)
    yield harness
    harness.close()


def test_a_lease_runs_on_an_image_and_sees_nothing_of_the_machine(world: WithImages) -> None:
    said = world.output("sh", "-c", SCRIPT, gpu_model="cpu", image="toolbox").splitlines()
    assert said[:3] == ["NAME=an image of a test", "NAME=an image of a test", "tenant"]
    assert "setpriv" in said and "perl" not in said
    assert "read-only" in said
    assert "home" not in said


def test_an_image_that_cannot_be_run_is_refused_with_what_it_lacks(images: Images) -> None:
    assert images.names() == ["toolbox"]
    assert images.find("toolbox") == images.root / "toolbox"
    (images.root / "bare" / "bin").mkdir(parents=True)
    with pytest.raises(Refused, match=r"lacks /bin/sh, /bin/cp, .*setpriv"):
        images.find("bare")
    (images.root / "sly").symlink_to("/")
    for name in ("none", "../images/toolbox", "sly", "", "toolbox/etc"):
        with pytest.raises(Refused, match="there is no image"):
            images.find(name)


def test_where_no_image_can_run_it_says_why(images: Images) -> None:
    assert refusal(images, sandbox=True) is None
    assert "SUBLET_IMAGES" in str(refusal(None, sandbox=True))
    assert "sandbox" in str(refusal(images, sandbox=False))


def test_an_image_that_is_gone_by_the_start_fails_the_start(world: WithImages) -> None:
    workload = Workload(id=new_id(), gpu_model="cpu", gpus=1, command=["true"], image="gone")
    with pytest.raises(Refused, match="there is no image 'gone'"):
        world.engine.start(workload, deadline=world.in_(60))
    assert world.phase(workload.id) is Phase.ABSENT
