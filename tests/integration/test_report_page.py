"""`kimbox report` of a machine, an image and a package, looked at in a real browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import attrs
import browser
import makekeys
import makemachine
import pytest
import tinyimage
import tinypackage
from browser import LOW_CONTRAST, Browser, needs_browser
from clirun import Kimbox, error, result
from clirun import kimbox as kimbox
from clirun import world as world
from tinypackage import Made, image_of, machine_of
from webfolder import answering

from kimbox.image import namespace
from kimbox.image.build import rootfs
from kimbox.lock.apt import cache
from kimbox.machine import past_audits
from kimbox.machine.folder import Machine
from kimbox.machine.record import Sealed

pytestmark = pytest.mark.skipif(not tinyimage.usable(), reason="this user cannot build images here")

box, made = tinypackage.box, tinypackage.made  # fixtures

HOSTILE = "<script>alert(1)</script><img src=http://127.0.0.1:9/x>\u202e"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser.opened(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def reported(kimbox: Kimbox, *words: str) -> dict[str, Any]:
    """Runs `kimbox report` and returns the content of the page."""
    code, out, err = kimbox("--json", "report", *words)
    assert 0 == code, err + out
    content: dict[str, Any] = result(out, "report")["content"]
    return content


def outcomes(content: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["outcome"] for check in content["checks"]}


def lines_of_audit(at: str, **failed: str) -> str:
    """The lines of an audit, with an id and what was found for each failed check."""
    about = {"title": HOSTILE, "cis": "", "severity": "high", "expected": "none", "remedy": "mend it"}
    checks = [{"id": "net.udp", "status": "pass", "found": "none"}]
    checks += [{"id": name, "status": "fail", "found": found} for name, found in failed.items()]
    lines = [{"audit": 1, "at": at, "boot": makemachine.BOOT, "role": "worker", "site": "openkim.org"}]
    return "".join(json.dumps(line) + "\n" for line in [*lines, *(about | check for check in checks)]) + (
        json.dumps({"end": True, "checks": len(checks)}) + "\n"
    )


@pytest.fixture
def sealed(box: Path) -> Machine:
    """The halted machine of a sealed box: it has audits, events of a start, a changed file and hostile texts."""
    machine = machine_of(box, image_of(box), "mkdir /etc/<script>alert(1)</script>")
    machine.data_key.touch()
    machine.write_record(attrs.evolve(machine.record(), sealed=Sealed("worker", "openkim.org")))
    step = {"n": 1, "of": 2, "kind": "provision", "name": HOSTILE}
    makemachine.tell(
        machine,
        makemachine.event("booting", mode="resnap", uptime_s=4.0),
        makemachine.event("sshd", uptime_s=6.5),
        makemachine.event("provisioning", manifest="a" * 64, uptime_s=7.0),
        makemachine.event("step", status="running", uptime_s=8.0, **step),
        makemachine.event("step", status="done", uptime_s=9.0, **step),
        makemachine.event("sealed", manifest="a" * 64, role="worker", site="openkim.org", uptime_s=12.0),
        makemachine.event("step", status="running", uptime_s=99.0, **step),
    )
    first = lines_of_audit("2026-11-28T09:00:00Z", **{"net.tcp": HOSTILE, "file.world": "/x"})
    machine.audit_log.write_text(first + lines_of_audit("2026-11-28T09:15:00Z", **{"net.tcp": HOSTILE}))
    return machine


def test_a_machine(kimbox: Kimbox, box: Path, sealed: Machine) -> None:
    """The report has the machine's own lock, its audits and their trend, its last start, and what was changed."""
    shutil.rmtree(box / ".git", ignore_errors=True)
    (box / "kimbox.lock").unlink()  # the machine has its own
    content = reported(kimbox, "-o", "page.html")
    assert ("machine", "tiny", "halted") == (content["kind"], content["name"], content["state"])
    assert image_of_machine(sealed) == content["image"]["key"]
    stages = content["start"]["stages"]
    assert [0.0, 4.0, 6.5, 7.0, 8.0] == [stage["start_s"] for stage in stages]
    assert ("sealed", 12.0) == (content["start"]["result"], content["start"]["total_s"])
    assert ["net.tcp"] == content["audit"]["breaches"]
    assert [[], ["file.world"]] == [past["mended"] for past in content["past_audits"]]
    assert "fail" == outcomes(content)["The audit finds no breach"]
    assert "pass" == outcomes(content)["The image in the store has its digest"]
    assert {"kimbox.yaml", "kimbox.lock"} == set(content["again"]["files"])
    assert ["kimbox build", "kimbox up", "kimbox diff"] == content["again"]["commands"]
    page = (box / "page.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_boot_that_failed_to_seal(kimbox: Kimbox, sealed: Machine) -> None:
    """The audit of the boot before says nothing about it: the check fails, with the reason of the box."""
    sealed.write_record(attrs.evolve(sealed.record(), ended=None))
    failed = {"manifest": "", "kind": "seal", "name": "seal", "reason": "no credentials"}
    makemachine.tell(sealed, makemachine.event("failed", boot=makemachine.NEXT_BOOT, uptime_s=3, **failed))
    content = reported(kimbox)
    assert "no credentials" in content["audit"]["unsealed"]
    assert "fail" == outcomes(content)["The audit finds no breach"]
    assert "failed" == content["start"]["result"]


def image_of_machine(machine: Machine) -> str:
    return machine.record().image


def test_audits_are_kept_for_the_next_start(kimbox: Kimbox, sealed: Machine) -> None:
    """QEMU begins a new log at each start. The audits that a report has seen are still in the next one."""
    reported(kimbox)
    sealed.audit_log.write_text(lines_of_audit("2026-11-28T10:00:00Z"))
    assert ["2026-11-28T09:00:00Z", "2026-11-28T09:15:00Z", "2026-11-28T10:00:00Z"] == [
        past["at"] for past in reported(kimbox, "--force")["past_audits"]
    ]
    with sealed.past_audits.open("a") as file:
        file.write("{not JSON\n[]\n")
    assert 3 == len(past_audits.past(sealed))


def test_an_existing_page_is_kept(kimbox: Kimbox, box: Path) -> None:
    """Only --force replaces a page."""
    (box / "tiny.report.html").write_text("mine")
    code, out, _ = kimbox("--json", "report")
    assert (5, "file-exists") == (code, error(out, "report")["code"])
    assert "mine" == (box / "tiny.report.html").read_text()
    assert "image" == reported(kimbox, "--force")["kind"]
    assert (box / "tiny.report.html").read_text().startswith("<!DOCTYPE html>")


def test_the_commands_make_it_again(kimbox: Kimbox, box: Path) -> None:
    """The files of the report of an image, in an empty folder, give the same image."""
    content = reported(kimbox)
    again = box / "again"
    again.mkdir()
    for name, text in content["again"]["files"].items():
        (again / name).write_text(text)
    code, out, err = kimbox("--json", "build", "--file", str(again / "kimbox.yaml"))
    assert 0 == code, err + out
    assert content["image"]["key"] == result(out, "build")["key"]
    assert content["again"]["files"]["kimbox.lock"] == (again / "kimbox.lock").read_text()


def test_a_changed_image_is_a_failure(kimbox: Kimbox, box: Path) -> None:
    """A bit of the image in the store that has changed is a failed check, and the page is written."""
    with image_of(box).disk.open("r+b") as file:
        file.seek(1000)
        file.write(b"changed")
    assert "fail" == outcomes(reported(kimbox))["The image in the store has its digest"]


@pytest.mark.parametrize("name", ["tiny-libvirt.box", "tiny-virtualbox.box", "tiny.qcow2", "tiny.raw", "tiny.ova"])
def test_a_package(kimbox: Kimbox, box: Path, made: Made, tmp_path: Path, name: str) -> None:
    """A package is described by its own files and its disk, in each format, and by none of this folder."""
    kinds = {"tiny-libvirt.box": "libvirt", "tiny-virtualbox.box": "virtualbox"}
    machine_of(box, image_of(box), "write mine /etc/by-hand")
    made("-o", str(tmp_path / "out"), "--format", kinds.get(name, name.partition(".")[2]))
    lock = (box / "kimbox.lock").read_text()
    for file in box.glob("kimbox.*"):
        file.unlink()
    content = reported(kimbox, str(tmp_path / "out" / name), "-o", "page.html")
    assert ("package", "tiny") == (content["kind"], content["name"])
    assert lock == content["again"]["files"]["kimbox.lock"]
    assert "file /etc/by-hand" in content["unpinned"]
    is_vmdk = name in ("tiny-virtualbox.box",)
    assert ("unknown" if is_vmdk else "pass") == outcomes(content)["The provenance statement is about these bytes"]
    assert "unknown" == outcomes(content)["The package has a signature of its author"]
    assert f"kimbox box add tiny ./{name} --digest sha256:{content['package']['sha256']}" == (
        content["again"]["commands"][0].replace("report-box", "tiny")
    )
    assert not [path for path in (tmp_path / "home/images").iterdir() if "report" in path.name and path.is_dir()]


def test_a_package_with_other_files_beside_it(kimbox: Kimbox, box: Path, made: Made) -> None:
    """Files beside a package that its checksums do not list, or list otherwise, do not describe it."""
    made("-o", "out", "--format", "raw")
    out = box / "out"
    (out / "tiny.kimbox.lock").write_text("lock: 1\n")
    assert "checksum-mismatch" == error(kimbox("--json", "report", "out/tiny.raw")[1], "report")["code"]
    (out / "tiny.SHA256SUMS").unlink()
    content = reported(kimbox, "out/tiny.raw")
    assert (None, []) == (content["lock"], content["repositories"])


def test_a_second_build(kimbox: Kimbox, box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --verify the image is built again. Equal bytes pass, and a difference is named."""
    monkeypatch.setattr(cache, "ensure", lambda *_, **__: None)  # the tiny root is not made of its packages
    name = "A second build of the image gives the same bytes"
    assert name not in outcomes(reported(kimbox))
    assert "pass" == outcomes(reported(kimbox, "--verify", "--force"))[name]
    fill = rootfs.build

    def fill_differently(*args: Any, **options: Any) -> Path:
        root = fill(*args, **options)
        namespace.call(["sh", "-c", "echo other >root/etc/hosts"], cwd=args[1])
        return root

    monkeypatch.setattr(rootfs, "build", fill_differently)
    content = reported(kimbox, "--verify", "--force")
    (evidence,) = [check["evidence"] for check in content["checks"] if check["name"] == name]
    assert ("fail", True) == (outcomes(content)[name], "/etc/hosts" in evidence)


@pytest.mark.parametrize(("name", "kind"), [("tiny-libvirt.box", "libvirt"), ("tiny.raw", "raw")])
def test_a_signed_package(kimbox: Kimbox, box: Path, made: Made, tmp_path: Path, name: str, kind: str) -> None:
    """The key of the author is accepted, inside a box and beside a disk. Another key is an error, and no page."""
    for key in ("key", "other"):
        makekeys.ssh(tmp_path, key)
    made("-o", "out", "--format", kind, "--sign", str(tmp_path / "key"))
    content = reported(kimbox, f"out/{name}", "--key", str(tmp_path / "key.pub"))
    assert "pass" == outcomes(content)["The package has a signature of its author"]
    code, out, _ = kimbox("--json", "report", f"out/{name}", "--key", str(tmp_path / "other.pub"), "-o", "other.html")
    assert (3, "signature-wrong") == (code, error(out, "report")["code"])
    assert not Path("other.html").exists()


def test_wrong_words(kimbox: Kimbox, box: Path) -> None:
    """A package that does not exist, and options of another subject, are refused before anything is written."""
    for words, code in (
        (["./no.box"], "file-not-found"), (["/"], "file-unreadable"), (["x.box", "--verify"], "usage"),
        (["--key", "k"], "usage"), ([".."], "bad-name"), (["a b"], "bad-name"), (["/etc/passwd"], "not-a-disk"),
    ):  # fmt: skip
        assert code == error(kimbox("--json", "report", *words)[1], "report")["code"]
    assert [] == list(box.glob("*.html"))


@needs_browser
def test_in_a_browser(kimbox: Kimbox, box: Path, sealed: Machine, chromium: Browser) -> None:
    """The page asks for nothing, has no error, fits a phone, prints, and a screen reader finds its parts."""
    reported(kimbox, "-o", "page.html")
    page = box / "page.html"
    for width in (360, 1000):
        chromium.show(page, width=width)
        assert [page.as_uri()] == chromium.requests
        assert [] == chromium.problems
        assert width >= chromium.value("document.documentElement.scrollWidth")
        assert [] == chromium.value(
            "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
            ".map(e => e.outerHTML.slice(0, 200))"
        )
    assert [] == chromium.value(LOW_CONTRAST)
    assert "en" == chromium.value("document.documentElement.lang")
    assert "none" != chromium.value("getComputedStyle(document.querySelector('table')).borderCollapse")
    assert chromium.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    parts = chromium.accessible()
    assert ("image", "Timeline of the last start") in parts
    assert {"main", "navigation", "heading", "columnheader", "rowheader"} <= {role for role, _ in parts}
    assert "Report of the machine tiny" in [name for role, name in parts if role == "heading"]
    assert 0 < chromium.pdf_pages() < 50


@needs_browser
def test_the_policy_holds(kimbox: Kimbox, box: Path, chromium: Browser, tmp_path: Path) -> None:
    """Markup that was added to the page loads nothing and runs nothing: the policy stops what an escape would let in.

    It also shows that the browser of these tests reports what it refuses.
    """
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    reported(kimbox, "-o", "page.html")
    with answering(Server) as port:
        image = f'<img src="http://127.0.0.1:{port}/image"><script>document.title = "run"</script>'
        for name, text in (
            ("strict.html", (box / "page.html").read_text().replace("<main", f"{image}<main")),
            ("loose.html", f"<!DOCTYPE html><title>not run</title>{image}"),
        ):
            (tmp_path / name).write_text(text)
        chromium.show(tmp_path / "strict.html")
        assert [] == asked
        assert chromium.problems
        assert "run" != chromium.value("document.title")
        chromium.show(tmp_path / "loose.html")
        assert ["/image"] == asked
        assert "run" == chromium.value("document.title")
