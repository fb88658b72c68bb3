"""Keystone and Glance of OpenStack on 127.0.0.1, with SQLite. They are in an environment of their own."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import openstack
import pytest
from servers import free_port, listening, writing_its_id

from kimbox.drivers.openstack.sdk import Sdk
from kimbox.run import run

#: The environment that `script/test` makes.
ENVIRONMENT = Path(os.environ.get("KIMBOX_OPENSTACK", "/nonexistent"))

SERVER = Path(__file__).with_name("openstackserver.py")

KEYSTONE = """\
[DEFAULT]
log_file = {folder}/keystone.log
[database]
connection = sqlite:///{folder}/keystone.db
[fernet_tokens]
key_repository = {folder}/fernet
[fernet_receipts]
key_repository = {folder}/fernet
[cache]
enabled = false
[identity]
password_hash_rounds = 4
"""

GLANCE = """\
[DEFAULT]
log_file = {folder}/glance.log
enabled_backends = fs:file
[database]
connection = sqlite:///{folder}/glance.db
[glance_store]
default_backend = fs
[fs]
filesystem_store_datadir = {folder}/images/
[os_glance_staging_store]
filesystem_store_datadir = {folder}/staging/
[os_glance_tasks_store]
filesystem_store_datadir = {folder}/tasks/
[keystone_authtoken]
www_authenticate_uri = {keystone}
auth_url = {keystone}
auth_type = password
project_domain_id = default
user_domain_id = default
project_name = admin
username = admin
password = secret
token_cache_time = -1
[paste_deploy]
flavor = keystone
config_file = {environment}/etc/glance/glance-api-paste.ini
"""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Path]:
    """Runs both in a folder. Yields a clouds.yaml with the cloud `test`."""
    python = ENVIRONMENT / "bin/python"
    if not python.exists():
        pytest.skip("script/test integration installs Keystone and Glance")
    ports = {"keystone": free_port(), "glance": free_port()}
    keystone, glance = (f"http://127.0.0.1:{port}" for port in ports.values())
    values = {"folder": folder, "keystone": f"{keystone}/v3", "environment": ENVIRONMENT}
    for name in ("images", "staging", "tasks", "fernet"):
        (folder / name).mkdir(mode=0o700)
    (folder / "keystone.conf").write_text(KEYSTONE.format(**values))
    (folder / "glance-api.conf").write_text(GLANCE.format(**values))
    env = {
        "OS_KEYSTONE_CONFIG_FILES": str(folder / "keystone.conf"),
        "OS_GLANCE_CONFIG_DIR": str(folder),
    }
    run([python, SERVER, "init", folder, f"{keystone}/v3"], env=env, timeout_s=300)
    run([ENVIRONMENT / "bin/glance-manage", "--config-file", folder / "glance-api.conf", "db_sync"], timeout_s=300)
    clouds = folder / "clouds.yaml"
    login = {"auth_url": f"{keystone}/v3", "username": "admin", "password": "secret", "project_name": "admin"}
    login |= {"user_domain_id": "default", "project_domain_id": "default"}
    clouds.write_text(json.dumps({"clouds": {"test": {"auth": login, "region_name": "one"}}}))
    clouds.chmod(0o600)
    with contextlib.ExitStack() as servers:
        for name, port in ports.items():
            pid_file = folder / f"{name}.pid"
            settings = [f"{key}={value}" for key, value in env.items()]
            words = [*settings, *writing_its_id([str(python), str(SERVER), name, str(port)], pid_file)]
            servers.enter_context(listening(["env", *words], port, pid_file, folder / f"{name}.out"))
            if name == "keystone":
                _register(clouds, glance)
        yield clouds


def _register(clouds: Path, glance: str) -> None:
    """Enters Glance into the catalog of Keystone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds))
        identity = openstack.connect(cloud="test").identity
        service = identity.create_service(name="glance", type="image")
        identity.create_endpoint(service_id=service.id, interface="public", url=glance, region_id="one")


def revoke(cloud: Sdk) -> None:
    """Ends the token of a connection."""
    session = cloud.connection.session
    headers = {"X-Subject-Token": session.get_token()}
    session.delete("/auth/tokens", endpoint_filter={"service_type": "identity"}, headers=headers)
