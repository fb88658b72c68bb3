"""The part `secure` of a spec, and the files that a box gets of it."""

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
    """The part `secure` of a spec."""
    path = tmp_path / "kimbox.yaml"
    path.write_text(f"kimbox: 1\nname: x\n{text}\n")
    return load_box(path).secure


def test_a_spec_without_it(tmp_path: Path) -> None:
    """Such a box takes no role."""
    assert load(tmp_path, "") is None
    assert load(tmp_path, "secure: null") is None


def test_roles_as_they_are_written(tmp_path: Path) -> None:
    """Every key reaches the model; what is left out is closed."""
    (tmp_path / "keys.pub").write_text(f"# who may\n{KEY} me@home\n")
    found = load(
        tmp_path,
        f"secure:\n  site: a.org\n  keys: [keys.pub]\n  dns: true\n  remove: [gcc]\n  disable: [a.service]\n  roles:\n"
        f"    worker: {{{WORKER}, outbound:\n"
        "      [{host: git.a.org, port: 443}, {host: '::1', port: 9, protocol: udp}]}\n"
        "    director: {inbound: [22, 80], accounts: [site], services: [b.service]}",
    )
    away = (Outbound("git.a.org", 443), Outbound("::1", 9, "udp"))
    assert found == Secure(
        site="a.org",
        roles=(
            Role("worker", Gateway("10.0.2.2", 2222, (KEY,)), (), away, (), ()),
            Role("director", None, (22, 80), (), ("site",), ("b.service",)),
        ),
        keys=(KEY,),
        dns=True,
        remove=("gcc",),
        disable=("a.service",),
        updates=False,
    )
    assert found.role("nobody") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("secure: {site: a.org}", "3:9: secure has no `roles`"),
        ("secure: {roles: {}}", "3:17: there is no role (name one, such as `worker: {}`)"),
        ("secure: {roles: {Boss: {}}}", "3:18: `Boss` cannot be the name of a role"),
        ("secure: {roles: {dev: {}}}", "3:18: `dev` is what a box is that took no role"),
        ("secure: {roles: {w: {inbuond: [1]}}}", "3:22: unknown key `inbuond` in secure.roles.w (did you"),
        ("secure: {roles: {w: {inbound: [0]}}}", "3:32: secure.roles.w.inbound[0] must be from 1 to 65535, not `0`"),
        ("secure: {roles: {w: {inbound: [22, 22]}}}", "3:36: the port `22` is here for the second time"),
        ("secure: {roles: {w: {accounts: [root]}}}", "3:33: `root` is no account of a role's: kimbox decides about it"),
        ("secure: {roles: {w: {accounts: ['a b']}}}", "3:33: `a b` cannot be the name of an account"),
        ("secure: {roles: {w: {services: [a]}}}", "3:33: `a` is not the name of a systemd unit"),
        ("secure: {site: a_b, roles: {w: {}}}", "3:16: `a_b` cannot be the name of a site"),
        ("secure: {roles: {w: {gateway: {host: a}}}}", "3:31: secure.roles.w.gateway has no `host_keys`"),
        (
            "secure: {roles: {w: {gateway: {host: 1.2.3.4, host_keys: []}}}}",
            "3:58: without its host key no gateway can be told from another server",
        ),
        (
            "secure: {roles: {w: {gateway: {host: '-oProxyCommand=x', host_keys: [a]}}}}",
            "3:38: `-oProxyCommand=x` cannot be the name of a host",
        ),
        (
            f"secure: {{roles: {{w: {{gateway: {{host: a.org, host_keys: ['{KEY}']}}}}}}}}",
            "3:21: `a.org` is a name, and this box may ask no name server (write `dns: true`, or give its address)",
        ),
        (
            "secure: {updates: true, roles: {w: {}}}",
            "3:19: updates need unattended-upgrades in the image (add it: `image: {packages: [unattended-upgrades]}`)",
        ),
        ("secure: {keys: [ssh-rsa], roles: {w: {}}}", "3:17: this is no public key that can be verified with"),
    ],
)  # fmt: skip
def test_faults_are_told_at_their_places(tmp_path: Path, text: str, expected: str) -> None:
    """Line and column of the value, the rule, and what to do."""
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text)
    assert any(expected in str(problem) for problem in caught.value.problems), str(caught.value)


def test_what_a_box_is_told() -> None:
    """Values for the shell, a line for each host that may be reached, the gateway first and by one name."""
    away = (Outbound("10.0.2.2", 2222), Outbound("git.a.org", 443))
    role = Role("worker", Gateway("10.0.2.2", 2222, (KEY,)), (80, 443), away, ("site",), ("b.service",))
    secure = Secure("a.org", (role,), (KEY,), True, ("gcc", "make"), ("a.service",), False)
    files = sealing.files(secure, role)
    assert {
        "KIMBOX_INBOUND": "80 443", "KIMBOX_OPERATOR": "yes", "KIMBOX_ACCOUNTS": "site", "KIMBOX_SERVICES": "b.service",
        "KIMBOX_DNS": "yes", "KIMBOX_REMOVED": "gcc make", "KIMBOX_DISABLED": "a.service", "KIMBOX_UPDATES": "",
        "KIMBOX_GATEWAY_HOST": "10.0.2.2", "KIMBOX_GATEWAY_PORT": "2222",
    } == parse_assignments(files.pop("policy.env"))  # fmt: skip
    assert {
        "outbound": b"10.0.2.2 2222 tcp\ngit.a.org 443 tcp\n",
        "known_hosts": f"kimbox-gateway {KEY}\n".encode(),
        "operator_keys": f"{KEY}\n".encode(),
    } == files
    told = parse_assignments(sealing.answers(role, "a.org", "o'brien"))
    assert {"KIMBOX_ROLE": "worker", "KIMBOX_SITE": "a.org", "KIMBOX_USERNAME": "o'brien"} == told


def test_a_role_without_openings() -> None:
    """Every file is there, and empty; nobody is asked."""
    role = Role("worker", None, (), (), (), ())
    files = sealing.files(Secure(None, (role,), (), False, (), (), False), role)
    assert (b"", b"", b"") == (files["outbound"], files["known_hosts"], files["operator_keys"])
    policy = parse_assignments(files["policy.env"])
    assert ("", "") == (policy["KIMBOX_GATEWAY_HOST"], policy["KIMBOX_ACCOUNTS"])
