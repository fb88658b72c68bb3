"""`env` in a spec: names, values, and the files of secret values."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from makebox import make_box
from refused import refused

from kimbox.errors import SpecError, StateError
from kimbox.lock.lockfile import Lock
from kimbox.machine import secretvalues
from kimbox.render.manifest import manifest_digest, render_manifest
from kimbox.spec.load import load_box
from kimbox.spec.model import Box, Variable


def box_of(folder: Path, env: str, more: str = "") -> Box:
    """Loads a spec with this `env`."""
    spec = folder / "kimbox.yaml"
    spec.write_text(f"kimbox: 1\nname: tiny\n{more}env: {env}\n")
    return load_box(spec)


def test_variables(tmp_path: Path) -> None:
    """Text, and a file that need not exist yet. The manifest has the name of the secret one, and an own format."""
    box = box_of(tmp_path, "{A: 'x y', TOKEN: {file: secrets/token}}")
    assert (Variable("A", "x y", None), Variable("TOKEN", None, tmp_path / "secrets/token")) == box.variables
    manifest = render_manifest(box, Lock(box.digest, None, {}))
    assert (b"A=x y\n", b"TOKEN\n") == (manifest["environment"][0], manifest["secrets"][0])
    assert b"KIMBOX_MANIFEST_FORMAT='5'\n" in manifest["manifest.env"][0]
    plain = render_manifest(make_box(tmp_path), Lock("d" * 64, None, {}))
    assert not {"environment", "secrets"} & set(plain)
    assert manifest_digest(manifest) != manifest_digest(plain)


@pytest.mark.parametrize(
    ("env", "code"),
    [
        ("{1A: x}", "bad-name"), ("{A-B: x}", "bad-name"), ("{PATH: x}", "bad-name"), ("{LD_PRELOAD: x}", "bad-name"),
        ("{KIMBOX_BOX: x}", "bad-name"), ("{A: 5}", "wrong-type"), ("{A: true}", "wrong-type"),
        ("{A: 'x#y'}", "bad-value"), ("{A: ' x'}", "bad-value"), ('{A: "x\\ny"}', "bad-value"),
        ("{A: '\"x\"'}", "bad-value"), ("{A: 'x\\'}", "bad-value"), (f"{{A: {'x' * 900}}}", "bad-value"),
        ("{A: {file: /etc/passwd}}", "bad-path"), ("{A: {file: ../x}}", "bad-path"), ("{A: {file: ''}}", "bad-path"),
        ("{A: {flie: x}}", "unknown-key"), ("{A: {}}", "missing-key"),
        ("{A: null}", "wrong-type"), ("[A]", "wrong-type"),
    ],
)  # fmt: skip
def test_faults(tmp_path: Path, env: str, code: str) -> None:
    """Each is one error of the spec."""
    with pytest.raises(SpecError) as caught:
        box_of(tmp_path, env)
    assert code in [problem.code for problem in caught.value.problems]


def test_no_template_with_a_secret(tmp_path: Path) -> None:
    """`warm` would store the memory of the box."""
    box_of(tmp_path, "{A: x}", "warm: true\n")
    with pytest.raises(SpecError) as caught:
        box_of(tmp_path, "{A: {file: x}}", "warm: true\n")
    assert ["conflicting-settings"] == [problem.code for problem in caught.value.problems]


def test_values_are_read_at_a_start(tmp_path: Path) -> None:
    """One line of a private file below the folder of the spec. No error has the value."""
    box = box_of(tmp_path, "{A: 'x', TOKEN: {file: token}}")
    token = tmp_path / "token"
    with refused(StateError, "secret-unreadable", name="TOKEN", path=str(token)):
        secretvalues.text_of(box)
    token.write_text("s3cr3t\n")
    with refused(StateError, "secret-unreadable", name="TOKEN", path=str(token)):  # others may read it
        secretvalues.text_of(box)
    token.chmod(0o600)
    assert (b"TOKEN=s3cr3t\n", ("TOKEN",)) == (secretvalues.text_of(box), secretvalues.names(box))
    for data in (b"s3cr3t\ntwo\n", b"s3cr3t#", b"s3cr3t\xff", b"s3cr3t" * 1000):
        token.write_bytes(data)
        with pytest.raises(StateError) as caught:
            secretvalues.text_of(box)
        assert "s3cr3t" not in f"{caught.value.message} {caught.value.hint}"
    outside = attrs.evolve(box, source=tmp_path / "other/kimbox.yaml")
    token.write_text("x\n")
    with pytest.raises(StateError, match="outside"):
        secretvalues.text_of(outside)
