"""What cloud-init reads."""

from __future__ import annotations

import json

from ruamel.yaml import YAML

from kimbox.render import cloudinit

KEY = "ssh-ed25519 AAAA kimbox-a: {b} # 'c'"


def test_user_data_is_a_cloud_config_with_the_account_and_its_key() -> None:
    """Nobody logs in with a password. A text cannot become another value of YAML."""
    text = cloudinit.user_data("vagrant", KEY).decode()
    assert text.startswith("#cloud-config\n")
    values = YAML(typ="safe").load(text)
    (user,) = values["users"]
    assert ("vagrant", [KEY], True) == (user["name"], user["ssh_authorized_keys"], user["lock_passwd"])
    assert (False, True) == (values["ssh_pwauth"], values["ssh"]["emit_keys_to_console"])
    assert not {"ssh_keys", "chpasswd", "password"} & set(values)  # nothing secret


def test_metadata() -> None:
    """The id and the host name."""
    assert {"instance-id": "i-1", "local-hostname": "box"} == json.loads(cloudinit.meta_data("box", "i-1"))
