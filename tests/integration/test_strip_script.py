"""provisioners/strip: what the script removes from a new root file system, in a small root of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakeguest import UNSHARE, can_unshare

from kimbox import paths, run

pytestmark = pytest.mark.skipif(not can_unshare(), reason="this machine allows no mount namespace")

#: Enters a root of its own that has the programs of the host, and prints the paths that are left, with link targets.
ENTER = """
set -eu
mount -t tmpfs none "$1"
mkdir -p "$1/usr" "$1/tmp" "$1/proc" "$1/dev"
: >"$1/dev/null"
for folder in bin sbin lib lib64; do
    mkdir -p "$1/usr/$folder"
    [ ! -d "/usr/$folder" ] || mount --rbind "/usr/$folder" "$1/usr/$folder"
    ln -s "usr/$folder" "$1/$folder"
done
cp "$2" "$1/strip"
cd "$1"
sh -eu -c "$3"
chroot . /strip
chroot . find /usr/share /etc ! -type l -printf '%p\\n' -o -printf '%p -> %l\\n'
ls tmp
"""

TREE = r"""
cd usr
mkdir -p share/man/man1 share/man/de/man7 share/info share/locale/de/LC_MESSAGES share/doc/one/examples share/doc/two
mkdir -p ../etc/alternatives share/app
for file in man/man1/one.1.gz man/de/man7/x.7 info/dir locale/de/LC_MESSAGES/one.mo doc/one/copyright \
    doc/one/README doc/one/changelog.gz "doc/one/examples/the table" doc/two/LICENSE app/data; do
    echo text >"share/$file"
done
ln -s /etc/alternatives/a.1.gz share/man/man1/a.1.gz
ln -s /usr/share/man/man1/one.1.gz ../etc/alternatives/a.1.gz
ln -s /etc/alternatives/b.1.gz share/man/man1/b.1.gz
ln -s /usr/share/app/data ../etc/alternatives/b.1.gz
ln -s one.1.gz share/man/man1/two.1.gz
ln -s de share/man/de.UTF-8
ln -s /etc/locale.alias share/locale/locale.alias
ln -s two share/doc/three
ln -s LICENSE share/doc/two/copyright
ln -s ../one/changelog.gz share/doc/two/changelog.gz
ln -s ../doc/one/README share/app/README
ln -s "../usr/share/doc/one/examples/the table" ../etc/table
ln -s /nowhere ../etc/dangling
chmod 0640 share/doc/one/README
touch -d @5 share/doc/one/README
"""

#: What is left: licences, the folders of manual pages, files to which links lead, and what is not a document.
LEFT = """
/etc
/etc/alternatives
/etc/alternatives/b.1.gz -> /usr/share/app/data
/etc/dangling -> /nowhere
/etc/table -> ../usr/share/doc/one/examples/the table
/usr/share
/usr/share/app
/usr/share/app/README -> ../doc/one/README
/usr/share/app/data
/usr/share/doc
/usr/share/doc/one
/usr/share/doc/one/README
/usr/share/doc/one/copyright
/usr/share/doc/one/examples
/usr/share/doc/one/examples/the table
/usr/share/doc/three -> two
/usr/share/doc/two
/usr/share/doc/two/LICENSE
/usr/share/doc/two/copyright -> LICENSE
/usr/share/info
/usr/share/locale
/usr/share/locale/locale.alias -> /etc/locale.alias
/usr/share/man
/usr/share/man/de
/usr/share/man/de.UTF-8 -> de
/usr/share/man/de/man7
/usr/share/man/man1
/usr/share/man/man1/b.1.gz -> /etc/alternatives/b.1.gz
"""


def stripped(root: Path, tree: str) -> list[str]:
    """The paths that the script leaves of a tree, sorted."""
    root.mkdir()
    script = paths.provisioners_dir() / "strip/build"
    return sorted(run.run([*UNSHARE, "sh", "-c", ENTER, "enter", root, script, tree]).stdout.splitlines())


def test_documents_are_removed_and_folders_stay(tmp_path: Path) -> None:
    """Licences, folders of manual pages and files to which links lead stay.

    The links of an alternative stay if its page is in another folder.
    """
    assert LEFT.split("\n")[1:-1] == stripped(tmp_path / "root", TREE)


def test_a_file_that_stays_is_unchanged(tmp_path: Path) -> None:
    """Owner, mode and time are those of the package."""
    check = "chroot . stat -c '%a %Y' /usr/share/doc/one/README >&2"
    done = run.run(
        [*UNSHARE, "sh", "-c", f"{ENTER}\n{check}", "enter", tmp_path, paths.provisioners_dir() / "strip/build", TREE]
    )
    assert "640 5\n" == done.stderr


def test_a_root_without_documents(tmp_path: Path) -> None:
    """The folders of manual pages and documents exist in every Debian system. The other folders need not exist."""
    tree = "mkdir -p etc usr/share/man usr/share/doc"
    assert ["/etc", "/usr/share", "/usr/share/doc", "/usr/share/man"] == stripped(tmp_path / "root", tree)
