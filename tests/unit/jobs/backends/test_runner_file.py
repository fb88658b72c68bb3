"""The runner: one file that needs nothing but Python and QEMU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from kimbox import run
from kimbox.jobs.backends.runner import modules, runner
from kimbox.jobs.disk import contents, pack
from kimbox.jobs.order import BASE, IMAGE, ORDER, REPORT, RESULTS, Order

#: Imports the runner from the file, and prints the modules that are neither in it nor in the standard library.
FOREIGN = """
import sys, sysconfig
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
import kimbox.node.__main__
library = sysconfig.get_paths()["stdlib"]
for name in sorted(set(sys.modules) - before):
    file = getattr(sys.modules[name], "__file__", None)
    if file and not file.startswith((sys.argv[1], library)):
        print(name, file)
print("attrs" in sys.modules or "attr" in sys.modules)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "runner.pyz"
    path.write_bytes(runner())
    path.chmod(0o755)
    return path


def test_equal_modules_give_equal_bytes() -> None:
    """The file has no time and no path of this host."""
    assert runner() == runner()


def test_it_imports_the_standard_library_alone(file: Path, tmp_path: Path) -> None:
    """In a Python without site-packages and without variables, which would not find anything else."""
    done = run.run([sys.executable, "-I", "-S", "-c", FOREIGN, file], cwd=tmp_path)
    assert "False\n" == done.stdout
    assert not [path for path in modules() if path.startswith(("kimbox/cli", "kimbox/spec", "kimbox/machine"))]


def order(**changes: object) -> Order:
    fields: dict[str, object] = {
        "command": [], "arguments": ["--step"], "image_sha256": "0" * 64, "image_bytes": 3, "disk_bytes": 1 << 20,
        "image_url": "", "has_delivery": False, "folder_mode": 0o755, "folder_modified_ns": 1_000_000_001,
        "has_output": False,
    }  # fmt: skip
    return Order(**(fields | changes))  # type: ignore[arg-type]


def test_an_order_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Also with arguments that are not text."""
    first = order(arguments=["a b", "\udcff"], room_percent="7/2", timeout_s=60)
    (tmp_path / ORDER).write_bytes(first.as_bytes())
    assert first == Order.read(tmp_path / ORDER)


def test_a_failure_of_the_node_is_a_verdict(file: Path, tmp_path: Path) -> None:
    """An image that was damaged on its way: exit status 125, and results with the reason and the digest of the job."""
    job = tmp_path / "job"
    job.mkdir()
    (job / "run-job").write_text("#!/bin/sh\n")
    (job / "run-job").chmod(0o755)
    info = job.stat()
    node = tmp_path / "node"
    node.mkdir()
    packed = pack.pack(job, node / BASE, room=pack.Room(size_bytes=0))
    (node / IMAGE).write_bytes(b"bad")
    written = order(folder_mode=info.st_mode & 0o777, folder_modified_ns=info.st_mtime_ns, arguments=[])
    (node / ORDER).write_bytes(written.as_bytes())
    done = run.run([sys.executable, "-I", "-S", file, ORDER], cwd=node, check=False)
    assert 125 == done.code, done.stderr
    with contents.opened(node / RESULTS) as disk:
        report = json.loads(disk.head(REPORT.encode(), 1 << 20) or b"")
    assert ("host", f"sha256:{packed.digest}") == (report["verdict"], report["folder"])
    assert "changed on its way" in report["reason"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 2}', '{"format": 1, "other": 1}'])
def test_another_file_is_no_order(file: Path, tmp_path: Path, text: str) -> None:
    """It ends with 125, so that another node tries it, and with a message."""
    (tmp_path / ORDER).write_text(text)
    done = run.run([sys.executable, "-I", "-S", file], cwd=tmp_path, check=False)
    assert 125 == done.code
    assert "is not an order" in done.stderr
