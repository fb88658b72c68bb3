"""Where packages come from, asked of apt: tables of what it answers, and what follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox import run
from kimbox.errors import ImageError
from kimbox.lock.apt import explain
from kimbox.lock.apt import sources as apt
from kimbox.lock.apt.archive import Archive
from kimbox.lock.apt.sources import Source

#: What apt-get indextargets says on a Debian 12: URI, suite as written, code name, component, origin.
BOOKWORM = """\
http://deb.example.org/debian/	bookworm	bookworm	main	Debian
http://deb.example.org/debian/	bookworm	bookworm	contrib	Debian
http://deb.example.org/debian/	bookworm-updates	bookworm-updates	main	Debian
http://deb.example.org/debian-security/	bookworm-security	bookworm-security	main	Debian
"""

#: The same with the suite's other name.
STABLE = """\
http://deb.example.org/debian/	stable	bookworm	main	Debian
http://deb.example.org/debian-security/	stable-security	bookworm-security	main	Debian
"""

#: Ubuntu gives one code name to every pocket.
NOBLE = """\
http://ubuntu.example.org/ubuntu/	noble	noble	main	Ubuntu
http://ubuntu.example.org/ubuntu/	noble	noble	universe	Ubuntu
http://ubuntu.example.org/ubuntu/	noble-updates	noble	main	Ubuntu
http://ubuntu.example.org/ubuntu/	noble-security	noble	main	Ubuntu
http://ubuntu.example.org/ubuntu/	noble-backports	noble	main	Ubuntu
"""

FOREIGN = """\
https://download.example.com/linux/debian/	bookworm	bookworm	stable	Docker
https://packages.example.com/repo/	bookworm	bookworm	main	Vendor
cdrom:[Debian 12]/	bookworm	bookworm	main	Debian
http://deb.example.org/debian/	bookworm-backports	bookworm-backports	main	Debian Backports
http://deb.example.org/debian/	trixie	trixie	main	Debian
"""

MAIN = ("main",)


@pytest.mark.parametrize(
    ("answer", "distribution", "suite", "own", "expected"),
    [
        (
            BOOKWORM, "debian", "trixie", "bookworm",
            [
                Source("http://deb.example.org/debian", "trixie", ("main", "contrib")),
                Source("http://deb.example.org/debian", "trixie-updates", MAIN),
                Source("http://deb.example.org/debian-security", "trixie-security", MAIN),
            ],
        ),
        (
            BOOKWORM, "debian", "bookworm", "bookworm",
            [
                Source("http://deb.example.org/debian", "bookworm", ("main", "contrib")),
                Source("http://deb.example.org/debian", "bookworm-updates", MAIN),
                Source("http://deb.example.org/debian-security", "bookworm-security", MAIN),
            ],
        ),
        (
            STABLE, "debian", "trixie", "bookworm",
            [
                Source("http://deb.example.org/debian", "trixie", MAIN),
                Source("http://deb.example.org/debian-security", "trixie-security", MAIN),
            ],
        ),
        (
            NOBLE, "ubuntu", "jammy", "noble",
            [
                Source("http://ubuntu.example.org/ubuntu", "jammy", ("main", "universe")),
                Source("http://ubuntu.example.org/ubuntu", "jammy-security", MAIN),
                Source("http://ubuntu.example.org/ubuntu", "jammy-updates", MAIN),
            ],
        ),
        (
            "http://a.example.org/debian\tbookworm\tbookworm\tmain\tDebian\n"
            "http://b.example.org/debian/\tbookworm\tbookworm\tmain\tDebian\n",
            "debian", "trixie", "bookworm",
            [
                Source("http://a.example.org/debian", "trixie", MAIN),
                Source("http://b.example.org/debian", "trixie", MAIN),
            ],
        ),
        (FOREIGN, "debian", "trixie", "bookworm", []),
        (BOOKWORM, "ubuntu", "noble", "bookworm", []),
        ("", "debian", "trixie", "bookworm", []),
        ("nonsense\n\t\t\t\t\t\t\n", "debian", "trixie", "bookworm", []),
    ],
    ids=["next", "own", "alias", "ubuntu", "two mirrors", "foreign", "other distribution", "none", "nonsense"],
)  # fmt: skip
def test_sources_follow_the_machine(
    answer: str, distribution: str, suite: str, own: str, expected: list[Source]
) -> None:
    """Suite names are exchanged, pockets and components stay, what is not of the distribution is left out."""
    answer = answer.replace("\n", "\t/etc/apt/sources.list:1\n")
    assert expected == apt.for_suite(apt.parse_targets(answer), distribution, suite, own)


def test_a_line_of_sources_list() -> None:
    """As sources.list(5) has it."""
    assert (
        "deb http://x.example.org/d trixie main contrib"
        == Source("http://x.example.org/d", "trixie", ("main", "contrib")).line()
    )


def test_a_mirror_of_the_spec_is_taken_as_it_is() -> None:
    """Whatever else apt has."""
    assert [Source("http://x.example.org/debian", "trixie", MAIN)] == apt.sources(
        "debian", "trixie", "http://x.example.org/debian/"
    )


def answering(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Lets apt answer with a text."""
    monkeypatch.setattr(run, "run", lambda *_, **__: run.Completed(0, text, ""))


def test_no_source_is_an_error_that_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the way out."""
    answering(monkeypatch, FOREIGN)
    with pytest.raises(ImageError) as caught:
        apt.sources("ubuntu", "noble", None)
    assert "noble" in caught.value.message
    assert "mirror:" in (caught.value.hint or "")


def test_settings_without_a_value_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is empty in apt-config's dump sets nothing."""
    answering(monkeypatch, 'Acquire::http "";\nAcquire::http::Proxy "http://proxy.example.org:3128";\n')
    assert ['Acquire::http::Proxy "http://proxy.example.org:3128";'] == apt.access_options()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('ID=debian\nVERSION_CODENAME=bookworm\nPRETTY_NAME="a=b"\n', ("debian", "bookworm")),
        ('ID="ubuntu"\nVERSION_CODENAME="noble"\n', ("ubuntu", "noble")),
        ("", ("", "")),
    ],
)
def test_os_release(text: str, expected: tuple[str, str]) -> None:
    """Quoted or not."""
    assert expected == apt.os_release(text)


@pytest.mark.skipif(not run.which("apt-get"), reason="no apt here")
def test_this_machines_apt_answers_in_the_form() -> None:
    """The real program knows the fields that are asked for."""
    _, own = apt.os_release(Path("/etc/os-release").read_text())
    for source in apt.sources("debian", "trixie", None) if own in ("bookworm", "trixie") else []:
        assert source.suite.startswith("trixie")
        assert "main" in source.components


def test_missing_packages_are_explained() -> None:
    """apt's messages name every missing package; the similar name is that of the archives."""
    stderr = (
        "W: something else\nE: Unable to locate package nginz\nE: Unable to locate package nginz\n"
        "E: Package 'pyton3-numpy' has no installation candidate\n"
    )
    assert ["nginz", "pyton3-numpy"] == explain.missing_packages(stderr)
    known = ["nginx", "nginx-core", "ninja", "python3-numpy", "python3-numpy-dbg"]
    assert "nginx" == explain.similar_package("nginz", known)
    assert "python3-numpy" == explain.similar_package("pyton3-numpy", known)
    assert None is explain.similar_package("zzz", known)
    assert None is explain.similar_package("n" * 1000, known)


def test_conflicts_are_explained() -> None:
    """The lines of apt below its heading, a limited number of them."""
    stdout = "Reading ...\nThe following packages have unmet dependencies:\n" + " a : Conflicts: b\n" * 50 + "E: x\n"
    assert ["a : Conflicts: b"] * explain.MAX_CONFLICT_LINES == explain.conflicts(stdout)
    assert [] == explain.conflicts("Reading ...\n")


@pytest.mark.parametrize(
    "date",
    [
        "Sat, 28 Nov 99999999999 10:00:00 UTC", "Sat, 28 Nov 20202026 10:00:00 UTC", "Sat, 99 Nov 2026 10:00:00 UTC",
        "Fri, 31 Dec 9999 99999999:00:00 UTC", "no date",
    ],
)  # fmt: skip
def test_an_impossible_date_of_an_archive_is_ignored(
    date: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive chooses the date of its Release file. The other archives still have theirs."""
    monkeypatch.setenv("KIMBOX_HOME", str(tmp_path))
    made = Archive("debian", (Source("http://m.example.org/debian", "trixie", ("main",)),))
    lists = made.folder / "state/lists"
    lists.mkdir(parents=True)
    (lists / "a_Release").write_text("Origin: x\nDate: Sat, 28 Nov 2026 10:00:00 UTC\n")
    (lists / "b_Release").write_text(f"Origin: x\nDate: {date}\n")
    assert made.as_of() >= "2026-11-28T10:00:00Z"
    assert len(made.as_of()) == len("2026-11-28T10:00:00Z")
