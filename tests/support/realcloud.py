"""A cloud with real services: Keystone, Glance, Placement, Nova with QEMU, and Neutron, from Debian's packages.

They are in a root that is built once. They run in a mount, a pid and a network namespace of their own, whose first
process dies with the test: no port, bridge, mount or instance is left on this host. The test enters the network.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import ipaddress
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import openstack
import pytest
from keystoneauth1.exceptions import ClientException
from openstack.exceptions import SDKException
from openstackservices import ENVIRONMENT
from realkimbox import PROGRAM_PAUSE_S, until
from roots import extracted

from kimbox import run
from kimbox.files import locked, remove_tree

#: The release with the services: it has the OpenStack release Zed.
RELEASE = "bookworm"

#: Packages of the root.
PACKAGES = (
    "ca-certificates", "keystone", "glance-api", "placement-api", "nova-api", "nova-conductor", "nova-scheduler",
    "nova-compute-qemu", "neutron-server", "neutron-linuxbridge-agent", "neutron-dhcp-agent", "neutron-l3-agent",
    "neutron-metadata-agent", "rabbitmq-server", "mariadb-server", "python3-openstackclient", "python3-libvirt",
    "python3-waitress", "python3-pymysql", "libvirt-daemon", "libvirt-daemon-driver-qemu", "libvirt-clients",
    "qemu-system-x86", "qemu-utils", "genisoimage", "dosfstools", "dnsmasq-base", "haproxy", "iptables", "ebtables",
    "ipset", "conntrack", "iputils-arping", "bridge-utils", "iproute2", "procps",
)  # fmt: skip

#: The programs and the configuration of the services.
STACK = Path(__file__).parents[1] / "cloud/stack"

#: Programs that make the content of the root, beside the packages.
SOURCES = (STACK / "start-stack", STACK / "register")

#: Agents of Neutron that must run.
AGENTS = {"neutron-linuxbridge-agent", "neutron-dhcp-agent", "neutron-l3-agent", "neutron-metadata-agent"}

#: The name of the project and the login of its user, who is no administrator.
PROJECT, USER = "lab", "kim"

CLONE_NEWNET = 0x40000000

#: Name of a box that is a node of a pool of HTCondor.
NODE = "node"


def node_spec(port: int) -> str:
    """The spec of a node whose pool is on this port of its own 127.0.0.1. It can boot guests, and never powers off."""
    return f"""\
kimbox: 1
name: {NODE}
base: [minimal.yaml, condor-worker.yaml]
image: {{packages: [python3, qemu-system-x86, qemu-utils]}}
disk: {{size: 12GiB, volumes: {{root: 4GiB}}}}
env:
  CONDOR_POOL: "127.0.0.1:{port}"
  CONDOR_OWNER: kim@kimbox.test
  CONDOR_TOKEN: {{file: token}}
  CONDOR_IDLE_S: "0"
openstack: {{cloud: test, flavor: node, network: private, address: public}}
"""


#: The spec of a box whose jobs a node runs.
JOB_SPEC = "kimbox: 1\nname: jobs\nbase: [minimal.yaml]\n"


@attrs.frozen
class RealCloud:
    """The running services. `admin`, `user`: connections of the administrator and of the user of the project."""

    share: Path
    clouds: Path
    project: str
    admin: Any
    user: Any

    @property
    def pid(self) -> int:
        """Id of the first process of the namespaces."""
        return int((self.share / "pid").read_text())

    def enter(self, *words: str) -> run.Completed:
        """Runs a program in the root, beside the services."""
        path = "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        argv = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--net", "chroot"]
        return run.run([*argv, str(self.share / "root"), "env", "-i", path, "HOME=/root", *words], check=False)

    def allow(self, **quotas: int) -> None:
        """Sets quotas of the project: those of Nova by their names, and `floatingip` and `port` of Neutron."""
        network = {name: quotas.pop(name) for name in ("floatingip", "port") if name in quotas}
        if quotas:
            self.admin.compute.put(f"/os-quota-sets/{self.project}", json={"quota_set": quotas}).raise_for_status()
        if network:
            self.admin.network.put(f"/quotas/{self.project}", json={"quota": network}).raise_for_status()

    def free(self) -> None:
        """Removes the quotas that a test has set."""
        self.admin.compute.delete(f"/os-quota-sets/{self.project}").raise_for_status()
        self.admin.network.delete(f"/quotas/{self.project}")

    @contextlib.contextmanager
    def reconfigured(self, line: str) -> Iterator[None]:
        """In the block, nova-compute has another line in the section DEFAULT of its configuration."""
        folder = "/etc/nova/nova.conf.d"
        self._restart_compute(f"mkdir -p {folder}; printf '[DEFAULT]\\n%s\\n' '{line}' >{folder}/test.conf")
        try:
            yield
        finally:
            self._restart_compute(f"rm {folder}/test.conf")

    def _restart_compute(self, change: str) -> None:
        """Runs a shell script in the root. Then ends nova-compute, which start-stack starts again."""
        pid = (self.share / "compute.pid").read_text().strip()
        self.enter("sh", "-ec", f"{change}; kill {pid}")
        until("the end of nova-compute", lambda: not self.enter("kill", "-0", pid).ok)

    @contextlib.contextmanager
    def network(self, name: str, cidr: str, count: int) -> Iterator[str]:
        """In the block there is another external network, with so many addresses. Yields its id."""
        network = self.admin.network
        made = network.create_network(name=name, is_router_external=True, provider_network_type="local")
        first = ipaddress.ip_network(cidr)[10]
        pool = {"start": str(first), "end": str(first + count - 1)}
        network.create_subnet(network_id=made.id, ip_version=4, cidr=cidr, enable_dhcp=False, allocation_pools=[pool])
        try:
            yield str(made.id)
        finally:
            for address in network.ips(floating_network_id=made.id):
                network.delete_ip(address)
            network.delete_network(made)

    def left(self) -> list[str]:
        """Names what the project has, beside published images and what `_furnish` has made."""
        network = self.user.network
        ports = [port for port in network.ports() if port.device_owner.startswith("compute:") or not port.device_owner]
        images = [image for image in self.user.image.images(owner=self.project) if "kimbox" not in image.tags]
        return [
            *(f"instance {server.name}" for server in self.user.compute.servers()),
            *(f"key {key.name}" for key in self.user.compute.keypairs()),
            *(f"address {address.floating_ip_address}" for address in network.ips()),
            *(f"port {port.id}" for port in ports),
            *(f"image {image.name}" for image in images),
        ]

    def logs(self) -> str:
        """The ends of the services' logs, for a test that fails."""
        return "\n".join(
            f"== {path.name}\n{run.tail(path.read_text(errors='replace'))}" for path in sorted(self.share.glob("*.out"))
        )


@contextlib.contextmanager
def running(share: Path) -> Iterator[RealCloud]:
    """Runs the services, with their state in the folder `share`. In the block this thread has their network.

    Their programs are this user's children, who must be root.
    """
    if not ENVIRONMENT.exists():
        pytest.skip("script/test cloud installs the services of OpenStack")
    assert os.geteuid() == 0, "root is required to enter the network of the cloud"
    root = _root(ENVIRONMENT.with_name(f"{ENVIRONMENT.name}-debian"))
    try:
        with _started(root, share, "run"), inside(int((share / "pid").read_text())):
            yield _furnish(share)
    finally:
        remove_tree(share)


@contextlib.contextmanager
def inside(pid: int) -> Iterator[None]:
    """In the block this thread, and the programs that it starts, have the network of another process."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as own, Path(f"/proc/{pid}/ns/net").open() as other:
        assert libc.setns(other.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert libc.setns(own.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


def _root(folder: Path) -> Path:
    """Builds the root with databases and catalog, unless it is there. Returns it."""
    words = " ".join((RELEASE, *PACKAGES)).encode()
    state = hashlib.sha256(b"".join([words, *(path.read_bytes() for path in SOURCES)])).hexdigest()
    marker = folder / "state"
    with locked(folder.with_suffix(".lock"), wait_s=1800, busy="another run of the tests builds the root"):
        if not marker.exists() or marker.read_text() != state:
            remove_tree(folder)
            root = extracted(folder, PACKAGES, "--variant=minbase", release=RELEASE)
            share = folder / "share"
            with _started(root, share, "init"):
                pass
            remove_tree(share)
            marker.write_text(state)
    return folder / "root"


@contextlib.contextmanager
def _started(root: Path, share: Path, mode: str) -> Iterator[None]:
    """Runs the program start-stack in a mode, from the moment that it has started the services."""
    share.mkdir(parents=True)
    argv = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "unshare", "--mount", "--pid", "--net", "--fork"]
    argv += ["--kill-child", "--propagation", "private", str(STACK / "start-stack"), str(root), str(share), mode]
    started = share / "started"
    with run.background(argv) as services:
        until("the services", lambda: started.exists() or services.code() is not None, limit_s=300)
        assert started.exists(), services.output()
        yield


def _furnish(share: Path) -> RealCloud:
    """Waits until the services work together. Then makes the project, its networks and the flavors."""
    clouds = share / "clouds.yaml"
    common = {"auth_url": "http://127.0.0.1:5000/v3", "password": "secret"}
    common |= {"user_domain_id": "default", "project_domain_id": "default"}
    logins = {
        "admin": {"username": "admin", "project_name": "admin"},
        "test": {"username": USER, "project_name": PROJECT},
    }
    entries = {name: {"auth": common | login, "region_name": "one"} for name, login in logins.items()}
    clouds.write_text(json.dumps({"clouds": entries}))
    clouds.chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OS_CLIENT_CONFIG_FILE", str(clouds))
        admin = openstack.connect(cloud="admin")
        until("the cloud", lambda: _is_complete(admin), limit_s=240, every_s=PROGRAM_PAUSE_S)
        identity = admin.identity
        project = identity.create_project(name=PROJECT, domain_id="default")
        user = identity.create_user(name=USER, password="secret", domain_id="default", default_project_id=project.id)
        identity.assign_project_role_to_user(project, user, identity.find_role("member"))
        cloud = RealCloud(share, clouds, project.id, admin, openstack.connect(cloud="test"))
    _make_networks(cloud)
    flavors = {
        "small": {},
        "large": {"disk": 16},
        "node": {"ram": 2560, "disk": 16},
        "scratch": {"ephemeral": 1},
        "huge": {"ram": 4 << 20},
    }
    for name, more in flavors.items():
        admin.compute.create_flavor(name=name, vcpus=1, **({"ram": 1024, "disk": 6} | more))
    return cloud


def _is_complete(admin: Any) -> bool:
    """Whether Nova has its hypervisor, and Neutron its agents. A service that does not answer yet is no error."""
    try:
        list(admin.network.networks())  # Neutron answers other first requests with an error
        alive = {agent.binary for agent in admin.network.agents() if agent.is_alive}
        return alive >= AGENTS and [node.state for node in admin.compute.hypervisors()] == ["up"]
    except (SDKException, ClientException):
        return False


def _await_dhcp(cloud: RealCloud, network: str) -> None:
    """Waits until a network has DHCP. Neutron 21 often fails for 5 min if its agent starts DHCP for two at once."""
    ports = cloud.admin.network.ports
    until("DHCP", lambda: [p.status for p in ports(network_id=network, device_owner="network:dhcp")] == ["ACTIVE"])


def _make_networks(cloud: RealCloud) -> None:
    """Makes the network `public`, which has floating addresses, and the network `private` of the project behind it.

    The interface of start-stack is the gateway of `public`. Ports have no security groups: with them, Neutron's agent
    runs `ebtables -D ... --among-src`, which often fails in ebtables 1.8.9, and the agent then tries it for minutes.
    """
    public = cloud.admin.network.create_network(
        name="public",
        is_router_external=True,
        is_shared=True,
        is_port_security_enabled=False,
        provider_network_type="flat",
        provider_physical_network="public",
    )
    cloud.admin.network.create_subnet(
        network_id=public.id,
        ip_version=4,
        cidr="192.0.2.0/24",
        gateway_ip="192.0.2.1",
        allocation_pools=[{"start": "192.0.2.100", "end": "192.0.2.199"}],
    )
    _await_dhcp(cloud, public.id)
    network = cloud.user.network
    private = network.create_network(name="private", is_port_security_enabled=False)
    subnet = network.create_subnet(network_id=private.id, ip_version=4, cidr="10.20.0.0/24")
    _await_dhcp(cloud, private.id)
    router = network.create_router(name="router", external_gateway_info={"network_id": public.id})
    network.add_interface_to_router(router, subnet_id=subnet.id)
