"""The key `secure` of a spec, and the files that it gives a box."""

from __future__ import annotations

from pathlib import Path

import pytest

from kimbox.errors import SpecError
from kimbox.render import sealing
from kimbox.render.quote import parse_assignments
from kimbox.spec.load import load_box
from kimbox.spec.model import Gateway, Outbound, Role, Secure

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDYeIl0r0lFR1rU7XcF4xXvjTyFQyDkDVVDDhTOkGVJE"
WORKER = f'gateway: {{host: 10.0.2.2, port: 2222, host_keys: ["{KEY}"]}}'


def load(tmp_path: Path, text: str) -> Secure | None:
    """Returns `secure` of a spec with this text."""
    path = tmp_path / "kimbox.yaml"
    path.write_text(f"kimbox: 1\nname: x\n{text}\n")
    return load_box(path).secure


def test_a_spec_without_secure(tmp_path: Path) -> None:
    """A box without `secure` has no roles."""
    assert load(tmp_path, "") is None
    assert load(tmp_path, "secure: null") is None


def test_roles(tmp_path: Path) -> None:
    """The model has every key. A missing key means that nothing is open."""
    (tmp_path / "keys.pub").write_text(f"# who may\n{KEY} me@home\n")
    secure = load(
        tmp_path,
        "image: {packages: [systemd-timesyncd]}\nsecure:\n  site: a.org\n  keys: [keys.pub]\n  dns: true\n"
        "  remove: [gcc]\n  disable: [a.service]\n  time: [t.a.org, '2001:db8::1']\n  roles:\n"
        f"    worker: {{{WORKER}, outbound:\n"
        "      [{host: git.a.org, port: 443}, {host: '::1', port: 9, protocol: udp}]}\n"
        "    director: {inbound: [22, 80], accounts: [site], services: [b.service]}",
    )
    outbound = (Outbound("git.a.org", 443), Outbound("::1", 9, "udp"))
    assert secure == Secure(
        site="a.org",
        roles=(
            Role("worker", Gateway("10.0.2.2", 2222, (KEY,)), (), outbound, (), ()),
            Role("director", None, (22, 80), (), ("site",), ("b.service",)),
        ),
        keys=(KEY,),
        dns=True,
        remove=("gcc",),
        disable=("a.service",),
        updates=False,
        time=("t.a.org", "2001:db8::1"),
    )
    assert secure.role("nobody") is None


@pytest.mark.parametrize(
    ("boot", "keep", "mode"),
    [("", False, "resnap"), ("", True, "keep"), ("boot: keep", False, "keep"), ("boot: resnap", True, "resnap")],
)
def test_the_boot_mode_of_a_sealed_box(tmp_path: Path, boot: str, keep: bool, mode: str) -> None:
    """A box boots resnap when it is sealed, if nothing in its spec asks for something else."""
    (tmp_path / "kimbox.yaml").write_text(
        f"kimbox: 1\nname: x\n{boot}\nsecure: {{keep: {str(keep).lower()}, roles: {{director: {{}}}}}}\n"
    )
    box = load_box(tmp_path / "kimbox.yaml")
    assert (box.boot, mode) == (box.boot_mode(is_sealed=False), box.boot_mode(is_sealed=True))


@pytest.mark.parametrize(
    ("text", "place", "code"),
    [
        ("secure: {site: a.org}", "3:9", "missing-key"),
        ("secure: {roles: {}}", "3:17", "empty-value"),
        ("secure: {roles: {Boss: {}}}", "3:18", "bad-name"),
        ("secure: {roles: {dev: {}}}", "3:18", "bad-name"),
        ("secure: {roles: {w: {inbuond: [1]}}}", "3:22", "unknown-key"),
        ("secure: {roles: {w: {inbound: [0]}}}", "3:32", "out-of-range"),
        ("secure: {roles: {w: {inbound: [22, 22]}}}", "3:36", "duplicate"),
        ("secure: {roles: {w: {accounts: [root]}}}", "3:33", "bad-name"),
        ("secure: {roles: {w: {accounts: ['a b']}}}", "3:33", "bad-name"),
        ("secure: {roles: {w: {services: [a]}}}", "3:33", "bad-name"),
        ("secure: {site: a_b, roles: {w: {}}}", "3:16", "bad-name"),
        ("secure: {roles: {w: {gateway: {host: a}}}}", "3:31", "missing-key"),
        ("secure: {roles: {w: {gateway: {host: 1.2.3.4, host_keys: []}}}}", "3:58", "empty-value"),
        ("secure: {roles: {w: {gateway: {host: '-oProxyCommand=x', host_keys: [a]}}}}", "3:38", "bad-name"),
        (
            f"secure: {{roles: {{w: {{gateway: {{host: a.org, host_keys: ['{KEY}']}}}}}}}}",
            "3:21", "conflicting-settings",
        ),
        ("secure: {updates: true, roles: {w: {}}}", "3:19", "conflicting-settings"),
        ("secure: {time: [10.0.2.9], roles: {w: {}}}", "3:16", "conflicting-settings"),
        ("secure: {time: [ntp.a.org], roles: {w: {}}}", "3:16", "conflicting-settings"),
        ("secure: {time: [a b], roles: {w: {}}}", "3:17", "bad-name"),
        ("secure: {time: [10.0.2.9, 10.0.2.9], roles: {w: {}}}", "3:27", "duplicate"),
        ("secure: {keys: [ssh-rsa], roles: {w: {}}}", "3:17", "bad-public-key"),
    ],
)  # fmt: skip
def test_faults_are_reported_at_their_places(tmp_path: Path, text: str, place: str, code: str) -> None:
    """A problem has the line and column of the value, and a code."""
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text)
    assert f"{place} {code}" in [f"{p.line}:{p.column} {p.code}" for p in caught.value.problems], caught.value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{roles: {}}", "`secure.roles` is empty (add a role, such as `worker: {}`)"),
        ("{roles: {dev: {}}}", "`dev` is the role of a box that was not secured (choose another name)"),
        (
            "{roles: {w: {accounts: [root]}}}",
            "`root` cannot be an account of a role: kimbox manages it (choose another name)",
        ),
        (
            "{roles: {w: {services: [a]}}}",
            "`a` is not the name of a systemd unit (for example avahi-daemon.service)",
        ),
        (
            "{roles: {w: {gateway: {host: 1.2.3.4, host_keys: []}}}}",
            "without a host key, another server could pretend to be the gateway (`ssh-keyscan` prints the key; "
            "compare it with the key that the site publishes)",
        ),
        (
            "{roles: {w: {outbound: [{host: a.org, port: 80}]}}}",
            "`a.org` is a name, and the sealed box cannot reach a name server "
            "(write `dns: true`, or use the address of the host)",
        ),
        (
            "{updates: true, roles: {w: {}}}",
            "`secure.updates` needs unattended-upgrades in the image "
            "(add it: `image: {packages: [unattended-upgrades]}`)",
        ),
    ],
)
def test_messages_have_a_hint(tmp_path: Path, text: str, message: str) -> None:
    """The complete text of the message and its hint."""
    with pytest.raises(SpecError) as caught:
        load(tmp_path, f"secure: {text}")
    assert any(str(problem).endswith(f": {message}") for problem in caught.value.problems), str(caught.value)


def test_files_of_a_role() -> None:
    """The files contain values for the shell, and a line for each permitted host. The gateway is the first line."""
    outbound = (Outbound("10.0.2.2", 2222), Outbound("git.a.org", 443))
    role = Role("worker", Gateway("10.0.2.2", 2222, (KEY,)), (80, 443), outbound, ("site",), ("b.service",))
    secure = Secure("a.org", (role,), (KEY,), True, ("gcc", "make"), ("a.service",), False, ("2001:DB8::1",))
    files = sealing.files(secure, role)
    assert {
        "KIMBOX_INBOUND": "80 443", "KIMBOX_OPERATOR": "yes", "KIMBOX_ACCOUNTS": "site", "KIMBOX_SERVICES": "b.service",
        "KIMBOX_DNS": "yes", "KIMBOX_REMOVED": "gcc make", "KIMBOX_DISABLED": "a.service", "KIMBOX_UPDATES": "",
        "KIMBOX_TIME": "2001:DB8::1",
        "KIMBOX_GATEWAY_HOST": "10.0.2.2", "KIMBOX_GATEWAY_PORT": "2222",
    } == parse_assignments(files.pop("policy.env"))  # fmt: skip
    assert {
        "outbound": b"10.0.2.2 2222 tcp\ngit.a.org 443 tcp\n2001:db8::1 123 udp\n",
        "known_hosts": f"kimbox-gateway {KEY}\n".encode(),
        "operator_keys": f"{KEY}\n".encode(),
    } == files
    answers = parse_assignments(sealing.answers(role, "a.org", "o'brien"))
    assert {"KIMBOX_ROLE": "worker", "KIMBOX_SITE": "a.org", "KIMBOX_USERNAME": "o'brien"} == answers


def test_a_role_without_openings() -> None:
    """All files exist, and they are empty."""
    role = Role("worker", None, (), (), (), ())
    files = sealing.files(Secure(None, (role,), (), False, (), (), False), role)
    assert (b"", b"", b"") == (files["outbound"], files["known_hosts"], files["operator_keys"])
    policy = parse_assignments(files["policy.env"])
    assert ("", "") == (policy["KIMBOX_GATEWAY_HOST"], policy["KIMBOX_ACCOUNTS"])
