"""Parsers of texts: specs, locks, URLs, names, keys, git's and apt's output, and what a guest sends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import attrs
from fuzzing import Parser
from makejobrecord import make_folder, make_results

from kimbox import paths, run
from kimbox.guest import audit, cloudinit, events, health, stale
from kimbox.jobs import listing, record
from kimbox.lock.apt import archive, packages, sources
from kimbox.lock.apt.archive import Archive
from kimbox.lock.apt.packages import LockedPackage
from kimbox.lock.apt.sources import Source
from kimbox.lock.git import refs, submodules
from kimbox.lock.lockfile import Lock, PinnedRepository, PinnedSubmodule, format_lock, parse_lock
from kimbox.machine import console, past_audits
from kimbox.machine.problems import Known, problems
from kimbox.machine.record import PlanDigests, Record, Scratch, Sealed
from kimbox.machine.state import State
from kimbox.run import Completed
from kimbox.spec import rules, signing, units, urls
from kimbox.spec.load import load_box
from kimbox.spec.nodes import Fault

PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJQCVCQ8QIhr2mTEdPhVqyOdRsAPPGSUXuNHbM1Ad8Km"

#: What cloud-init writes to a console.
HOST_KEYS = b"\r\n".join((b"[  9.1] a", cloudinit.BEGIN, f"{PUBLIC_KEY} root@a".encode(), cloudinit.END, b"a login:"))

#: A spec with most of its keys.
SPEC = {
    "kimbox": 1, "name": "tiny", "description": "a box", "base": ["_defaults/debian.yaml"],
    "image": {"distribution": "debian", "packages": ["gcc", "python3"]},
    "disk": {"size": "13GiB", "boot": "256MiB",
             "volumes": {"root": "5GiB", "persistent": "2GiB", "swap": "512MiB", "root_snap": "100%ORIGIN"}},
    "boot": "resnap", "cpus": 2, "memory": "2GiB", "forwards": [{"guest": 8888}],
    "repositories": {"setup": {"url": "https://example.org/a.git", "ref": "stable", "follow": True},
                     "x": {"url": "git@example.org:a/b", "ref": "v1", "path": "/opt/x"}},
    "provision": [{"name": "a", "mode": "system", "run": "once", "script": "true\n", "timeout": "5m"}],
    "probes": [{"description": "answers", "script": "true", "hint": "none"}],
    "scratch": {"size": "4GiB", "mount": "/staging"},
    "secure": {"site": "example.org", "keys": [PUBLIC_KEY],
               "dns": True, "remove": ["gcc"], "roles": {"worker": {
                   "gateway": {"host": "203.0.113.7", "port": 22, "host_keys": [
                       PUBLIC_KEY]},
                   "outbound": [{"host": "a.test", "port": 443, "protocol": "tcp"}], "inbound": [22]}}},
}  # fmt: skip


def spec_seeds(_: Path) -> list[bytes]:
    plain = "\n".join(f"{key}: {json.dumps(value)}" for key, value in SPEC.items())
    return [json.dumps(SPEC).encode(), plain.encode()]


def shipped_spec_seeds(_: Path) -> list[bytes]:
    return [paths.boxes_dir().joinpath(f"{name}.yaml").read_bytes() for name in ("minimal", "openkim-dev")]


def read_spec(data: bytes, folder: Path) -> None:
    (folder / "kimbox.yaml").write_bytes(data)
    load_box(folder / "kimbox.yaml")


def read_shipped_spec(data: bytes, folder: Path) -> None:
    if not (folder / "boxes").exists():
        shutil.copytree(paths.boxes_dir(), folder / "boxes")
    read_spec(data, folder / "boxes")


def lock_seeds(_: Path) -> list[bytes]:
    module = PinnedSubmodule("https://example.org/b.git", "2" * 40)
    pinned = PinnedRepository("https://example.org/a.git", "stable", "1" * 40, "3" * 40, {"lib/b": module})
    versions = {"gcc": LockedPackage("1:2.3-4", "amd64", "a" * 64)}
    line = "deb http://m.example.org/debian trixie main"
    locked = packages.LockedPackages("0" * 64, "2026-01-01T00:00:00Z", (line,), versions)
    lock = Lock("0" * 64, "1" * 64, {"setup": pinned}, locked)
    return [format_lock(lock).encode()]


def read_a_lock(data: bytes, folder: Path) -> None:
    parse_lock(data.decode(errors="surrogateescape"), folder / "kimbox.lock")


def each_line(call: Callable[[str], object]) -> Callable[[bytes, Path], None]:
    """Returns a call of a rule for texts, which raises Fault or ValueError."""

    def read(data: bytes, _: Path) -> None:
        call(data.decode(errors="surrogateescape"))

    return read


def all_urls(text: str) -> None:
    for rule in (urls.repository, urls.image, urls.mirror, urls.is_folder, urls.is_url, urls.is_plain_http):
        try:
            rule(text)
        except Fault as fault:
            fault.message.encode(errors="backslashreplace")
    urls.why_not_followed("setup", text, text, is_verified=False)


def all_rules(text: str) -> None:
    for rule in (rules.box_name, rules.volume_group, rules.volume_name, rules.repository_name, rules.step_name,
                 rules.package, rules.ref, rules.guest_path, rules.mount_point, rules.vagrant_box, rules.digest,
                 units.size, units.snapshot_size, units.duration):  # fmt: skip
        try:
            rule(text)
        except Fault as fault:
            fault.message.encode(errors="backslashreplace")


def read_keys(data: bytes, folder: Path) -> None:
    (folder / "x.pub").write_bytes(data)
    for text in ("x.pub", data.decode(errors="surrogateescape")):
        try:
            signing.keys(text, folder, folder)
        except Fault:
            continue


def read_submodules(data: bytes, _: Path) -> None:
    """The settings of .gitmodules as git lists them, and what becomes of paths and URLs."""
    answer = type("Answer", (), {"code": 0, "stdout": data})()
    before, submodules.git = submodules.git, lambda *_, **__: answer  # type: ignore[assignment]
    try:
        found = submodules._sources(type("Mirror", (), {"path": Path()})(), "0" * 40)  # type: ignore[arg-type]
    finally:
        submodules.git = before
    for path, url in found.items():
        for parent in ("https://example.org/a/b.git", "git@example.org:a/b", "file:///srv/a"):
            try:
                submodules.check_path(path)
                submodules.absolute_url(url, parent)
            except Fault:
                continue


def read_refs(data: bytes, _: Path) -> None:
    offered = refs.Offered.parse(data.decode(errors="replace"))
    for ref in ("HEAD", "main", "v1", "refs/heads/main", "mian", "0123456"):
        try:
            refs.full_name("x", "https://example.org/a", ref, offered)
        except refs.GitError:
            continue


def with_output(text: str, call: Callable[[], object]) -> None:
    """Calls a function; the programs that it runs print this text."""
    before, run.run = run.run, lambda *_, **__: Completed(0, text, "")  # type: ignore[assignment]
    try:
        call()
    finally:
        run.run = before


def read_apt(data: bytes, folder: Path) -> None:
    """What apt prints about archives and packages, and Release files."""
    text = data.decode(errors="replace")
    made = Archive("debian", (Source("http://m.example.org/debian", "trixie", ("main",)),))
    package = LockedPackage("1.2-3", "amd64", "a" * 64)
    with_output(text, lambda: made.find({"a": package}))
    archive.bare(text)
    sources.for_suite(sources.parse_targets(text), "debian", "trixie", "bookworm")
    sources.os_release(text)


def read_uris(data: bytes, _: Path) -> None:
    made = Archive("debian", (Source("http://m.example.org/debian", "trixie", ("main",)),))
    text = data.decode(errors="replace")
    before, archive.write_atomic = archive.write_atomic, lambda *_, **__: None  # type: ignore[assignment]
    try:
        with_output(text, lambda: made.choose(["a"], {}))
    finally:
        archive.write_atomic = before


def read_release(data: bytes, folder: Path) -> None:
    """The date of a Release file."""
    made = Archive("debian", (Source("http://m.example.org/debian", "trixie", ("main",)),))
    before = paths.archives_dir
    paths.archives_dir = lambda: folder  # type: ignore[assignment]
    try:
        lists = made.folder / "state/lists"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / "x_Release").write_bytes(data)
        made.as_of()
    finally:
        paths.archives_dir = before


def read_events(data: bytes, folder: Path) -> None:
    """Events, as lines and as a file that grows."""
    file = folder / "events"
    file.write_bytes(b"")
    tail = events.Tail(file)
    for end in (len(data) // 3, len(data)):
        file.write_bytes(data[:end])
        for event in tail.read():
            stale.from_event(event)
            event.text("x").encode(errors="backslashreplace")
    found = [event for line in data.split(b"\n") if (event := events.parse_line(line))]
    console.explain(data, found, alive=False, waited_s=1.0)


def read_health(data: bytes, _: Path) -> None:
    """The problems that a box reports, and its last report, as JSON."""
    found = tuple(event for line in data.split(b"\n") if (event := events.parse_line(line)))
    if found:
        clock = health.Clock(found, 1.8e9)
        shown = [problem.as_json() for problem in problems(Known(State.SEALED, True, clock, 1.8e9))]
        json.dumps([shown, health.as_json(found, clock, 1.8e9)])


def read_past_audits(data: bytes, folder: Path) -> None:
    file = folder / "audits.jsonl"
    file.write_bytes(data)
    for past in past_audits.kept(file):
        json.dumps(attrs.asdict(past))


def read_console(data: bytes, _: Path) -> None:
    for line in console.console_lines(data):
        assert line.isprintable()
    console.explain(data, [], alive=True, waited_s=1.0)
    console.is_fatal(data, [])


def read_host_key(data: bytes, _: Path) -> None:
    key = cloudinit.host_key(data)
    assert key is None or key.encode() in data


def read_audit(data: bytes, _: Path) -> None:
    for report in audit.reports(data):
        assert audit.Report.parse(report.as_json()) == report
        audit.compare(report, report)
    audit.newest(data)


def read_saved_audit(data: bytes, _: Path) -> None:
    try:
        value = json.loads(data)
    except ValueError:
        return
    audit.Report.parse(value)


def read_record(data: bytes, folder: Path) -> None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    if isinstance(value, dict):
        Record.parse(value, folder / "machine.json")


def read_package_line(data: bytes, _: Path) -> None:
    packages.LockedPackage.parse(data.decode(errors="surrogateescape"))


def read_job_record(data: bytes, folder: Path) -> None:
    """The record of a job, which `kimbox job rerun` reads from a folder that anyone may have edited."""
    found = record.parse_record(data, folder / "job.json")
    if found.output is not None and found.input is not None:
        listing.compare(found.input, found.output)


def job_record_seeds(folder: Path) -> list[bytes]:
    made = make_results(make_folder(folder / "job"), folder / "out", {"a": b"1", "b": b"2"})
    return [made.read_bytes()]


KEY = f"{PUBLIC_KEY} a@b\n".encode()
GPG = b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nxxxx\n-----END PGP PUBLIC KEY BLOCK-----\n"
BOOT = "11111111-2222-4333-8444-555555555555"
EVENT = {"event": "box", "boot": BOOT, "uptime_s": 1.5, "manifest": "0" * 64, "stale": "a:setup@" + "0" * 40, "n": 3}
CHECK = {"id": "net.tcp", "title": "t", "cis": "1.2", "severity": "high", "status": "fail", "expected": "e",
         "found": "f", "remedy": "r"}  # fmt: skip
AUDIT = [{"audit": 1, "at": "2026-11-28T12:00:00Z", "boot": BOOT, "role": "worker", "site": "x"}, CHECK,
         {"end": True, "checks": 1}]  # fmt: skip
HEALTH = [{"event": "sealed", "boot": BOOT, "uptime_s": 9, "manifest": "a"},
          {"event": "health", "boot": BOOT, "uptime_s": 30, "space": "/:40:99 /a:97:3", "clock": "no", "percent": 96},
          {"event": "jobs", "boot": BOOT, "uptime_s": 31, "done": "1", "link_s": "1000", "last_s": "7"}]  # fmt: skip
PAST = {"at": "2026-11-28T12:00:00Z", "boot": BOOT, "counts": {"pass": 1, "fail": 1, "info": 0, "skip": 0},
        "failed": ["net.tcp"], "breaches": ["net.tcp"]}  # fmt: skip
REPORT = {"at": "2026-11-28T12:00:00Z", "audit": 1, "boot": BOOT, "role": "worker", "site": "x", "checks": [CHECK]}
REFS = b"".join(
    b"%040x\t%s\n" % (number, name)
    for number, name in enumerate((b"HEAD", b"refs/heads/main", b"refs/tags/v1", b"refs/tags/v1^{}"))
)
MODULES = b"submodule.a/b.path\na/b\0submodule.a/b.url\n../b.git\0submodule.c.path\nc\0submodule.c.url\nhttps://h/c\0"
TARGETS = b"http://m.example.org/debian\ttrixie\ttrixie\tmain\tDebian\n".replace(b"\t", sources._SEPARATOR.encode())
STANZA = b"Package: a\nVersion: 1.2-3\nArchitecture: amd64\nSHA256: " + b"a" * 64 + b"\nDescription: x\n more\n\n"
URIS = b"'http://m/a.deb' a_1.2%3a3_amd64.deb 12 SHA256:" + b"a" * 64 + b"\n"
RELEASE = b"Origin: Debian\nDate: Sat, 28 Nov 2026 10:00:00 UTC\n"
CONSOLE = b"\x1b[1;31m[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs\x1b[0m\r\n\x1b[2Jlogin: \r\n"
URLS = [b"https://example.org/a.git", b"git@example.org:a/b.git", b"ssh://me@h:22/x", b"file:///srv/a", b"./folder",
        b"http://[::1]:8080/x?token=a#b", b"ext::sh -c x"]  # fmt: skip
RECORD = Record(
    name="a",
    source="/a.yaml",
    shipped=None,
    spec_digest="0" * 64,
    image="1" * 64,
    uuid=BOOT,
    mac="52:54:00:00:00:01",
    ssh_port=2222,
    forwards={8888: 18888},
    sealed=Sealed("worker", "example.org"),
    scratch=Scratch(1 << 30, "/staging"),
    plan=PlanDigests("0" * 64, "1" * 64, "2" * 64),
).as_json()


def lines(*values: object) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


PARSERS = [
    Parser(
        "spec",
        spec_seeds,
        read_spec,
        words=(b"name: ", b"- ", b"script: |\n", b"[", b"{", b"!!python/object:"),
        share=0.1,
    ),
    Parser("spec-values", lambda folder: spec_seeds(folder)[:1], read_spec, is_json=True, share=0.1),
    Parser("shipped-spec", shipped_spec_seeds, read_shipped_spec, words=(b"base: ", b"../", b"*a", b"&a "), share=0.05),
    Parser("lock", lock_seeds, read_a_lock, words=(b"sha256:", b": ", b"- ", b"commit: "), share=0.1),
    Parser("urls", lambda _: URLS, each_line(all_urls), words=(b"file://", b"ext::", b"@", b":22", b"[::1")),
    Parser(
        "rules",
        lambda _: [b"name", b"13GiB", b"100%ORIGIN", b"36h", b"/opt/x", b"v1.2", b"sha256:" + b"0" * 64],
        each_line(all_rules),
        words=(b"GiB", b"%ORIGIN", b"h", b"refs/", b".lock", b"@{"),
    ),
    Parser("public-keys", lambda _: [KEY, GPG], read_keys, words=(b"ssh-ed25519 ", b"PRIVATE KEY", b"AAAA", b"====")),
    Parser("git-refs", lambda _: [REFS], read_refs, words=(b"\trefs/heads/", b"^{}", b"HEAD", b"refs/tags/")),
    Parser(
        "git-submodules", lambda _: [MODULES], read_submodules, words=(b"../", b".path\n", b".url\n", b".git", b"file:")
    ),
    Parser("apt-output", lambda _: [TARGETS, STANZA], read_apt, words=(b"Package: a\n", b"SHA256: ", b": ", b"cdrom:")),
    Parser("apt-uris", lambda _: [URIS * 3], read_uris, words=(b"'", b"SHA256:", b"_amd64.deb", b"%3a")),
    Parser("apt-release", lambda _: [RELEASE], read_release, words=(b"Date: ", b"99999", b"UTC", b"-0000", b"+9999")),
    Parser("package-line", lambda _: [b"1.2-3 amd64 " + b"a" * 64], read_package_line, errors=(ValueError,)),
    Parser(
        "events",
        lambda _: [lines(EVENT), lines(EVENT, {"event": "booting", "boot": BOOT, "uptime_s": 0})],
        read_events,
        words=(b'{"event":"box",', b'"stale":', b'"uptime_s":1e400', b"\\ud800", b"{" * 200),
    ),
    Parser(
        "health",
        lambda _: [lines(*HEALTH)],
        read_health,
        words=(b"/:100:1 ", b'"clock":"no"', b'"percent":99', b'"link_s":"9999999999"', b'"uptime_s":9e15'),
    ),
    Parser("health-values", lambda _: [json.dumps(HEALTH[1]).encode()], read_health, is_json=True),
    Parser("past-audits", lambda _: [lines(PAST, PAST)], read_past_audits, words=(b'"at":', b"{", b"1e999")),
    Parser("event", lambda _: [json.dumps(EVENT).encode()], read_events, is_json=True),
    Parser(
        "console", lambda _: [CONSOLE], read_console, words=(b"Kernel panic", b"\x1b[", b"\r", b"reboot: Power down")
    ),
    Parser(
        "console-host-key",
        lambda _: [HOST_KEYS],
        read_host_key,
        words=(cloudinit.BEGIN, cloudinit.END, b"ssh-ed25519 "),
    ),
    Parser(
        "audit-report", lambda _: [lines(*AUDIT)], read_audit, words=(b'{"end":true,"checks":1}', b'"status":"fail"')
    ),
    Parser(
        "saved-audit", lambda _: [json.dumps(REPORT).encode()], read_saved_audit, is_json=True, errors=(ValueError,)
    ),
    Parser(
        "job-record", job_record_seeds, read_job_record, words=(b"\\ud800", b'"files": null', b'"path":'), share=0.3
    ),
    Parser("job-record-values", job_record_seeds, read_job_record, is_json=True, share=0.3),
    Parser("machine-record", lambda _: [json.dumps(RECORD).encode()], read_record, is_json=True),
]
