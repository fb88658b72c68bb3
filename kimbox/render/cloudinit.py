"""What cloud-init reads at the first boot of an image that kimbox did not build: user data and metadata. Pure.

Both are JSON, which is YAML too. They have no secret: a private host key would stay readable in the guest, and a cloud
gives user data to each program of the guest that asks for it. So the guest makes its host keys itself, and writes the
public ones to its console.
"""

from __future__ import annotations

import json

#: Volume label by which cloud-init finds the disk with these files (its data source NoCloud).
LABEL = "cidata"

#: Names of the files on that disk.
USER_DATA, META_DATA = "user-data", "meta-data"

#: First line of user data of this kind.
_HEADING = "#cloud-config\n"


def user_data(account: str, public_key: str) -> bytes:
    """Returns the user data: an account with sudo, into which the owner of the key may log in.

    `public_key`: one line, as in authorized_keys(5).
    """
    values = {
        "users": [
            {
                "name": account,
                "gecos": "kimbox",
                "shell": "/bin/bash",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": True,
                "ssh_authorized_keys": [public_key],
            }
        ],
        "ssh_pwauth": False,
        "disable_root": True,
        "preserve_hostname": False,
        "manage_etc_hosts": "localhost",
        "ssh": {"emit_keys_to_console": True},
        "ssh_genkeytypes": ["ed25519"],  # the only one that kimbox accepts; an RSA key takes long under emulation
    }
    return (_HEADING + json.dumps(values, indent=1) + "\n").encode()


def meta_data(name: str, instance: str) -> bytes:
    """Returns the metadata: the host name, and the id of the instance.

    cloud-init configures a guest once for each instance. With another id it does all of it again, with new host keys.
    """
    return (json.dumps({"instance-id": instance, "local-hostname": name}) + "\n").encode()
