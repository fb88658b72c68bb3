"""kimbox up --install: brings the packages that the lock has more than a running box into it, as they are locked."""

from __future__ import annotations

import tarfile

import attrs

from kimbox.actions.diff import installed_packages
from kimbox.actions.observe import reach
from kimbox.errors import GuestError, StateError
from kimbox.guest.ssh import Guest
from kimbox.image.inputs.recipe import Recipe
from kimbox.lock.apt import cache
from kimbox.lock.apt.packages import LockedPackage, PackageChanges, compare
from kimbox.log import log
from kimbox.machine.folder import Machine
from kimbox.project.plan import Plan
from kimbox.spec.model import BootMode, PackageImage
from kimbox.temporary import temporary_folder

#: Where the packages lie in the guest until they are installed, below the home of its user.
PLACE = ".cache/kimbox-install"

#: apt installs them from there. It contacts no archive, because they have everything that they depend on.
APT = (
    "sudo -n env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends --no-remove "
    f"-o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold install ./{PLACE}/*.deb"
)

#: Timeouts of copying and of the installation, in seconds.
COPY_TIMEOUT_S, INSTALL_TIMEOUT_S = 1800.0, 3600.0

#: Maximum number of packages that a message names.
NAMED = 8


def install(machine: Machine, plan: Plan) -> tuple[str, ...]:
    """Installs in a ready box what its lock has more. Returns name and version of each package, also of earlier calls.

    The caller holds the lock of the machine. Raises StateError: `wrong-state` if the box would lose the packages at its
    next boot, or its image has no packages of a lock; `packages-moved` if the lock has others in place of those of the
    box; ImageError if a package is not available; GuestError (`packages-not-installed`).
    """
    recipe, name = plan.recipe, machine.name
    if recipe is None or not isinstance(plan.box.image, PackageImage):
        raise StateError(
            f"cannot install packages in {name}: its image is not built from packages of a lock",
            code="wrong-state",
            hint=f"`kimbox up --rebuild {name}` gives it a root from the present image",
            fields={"name": name},
        )
    if plan.box.boot_mode(is_sealed=False) is not BootMode.KEEP:
        raise StateError(
            f"cannot install packages in {name}: it boots {plan.box.boot}, and would lose them at the next boot",
            code="wrong-state",
            hint=f"`kimbox up --rebuild {name}` gives it a root that has them",
            fields={"name": name},
        )
    missing = _missing(machine, recipe)
    if missing:
        cache.ensure(plan.box.image, attrs.evolve(recipe.locked, versions=missing), offline=plan.project.offline)
        with log.step(f"installing {len(missing)} packages in {name}"):
            _install(machine, missing)
        if left := _missing(machine, recipe):
            raise _failed(name, f"the box still lacks {_some(left)}")
    record = machine.record()
    installed = tuple(sorted({*record.installed, *(f"{package} {missing[package].version}" for package in missing)}))
    if installed != record.installed:
        machine.write_record(attrs.evolve(record, installed=installed))
    return installed


def _missing(machine: Machine, recipe: Recipe) -> dict[str, LockedPackage]:
    """Returns the packages of the lock that a box lacks. Raises StateError if others are at other versions."""
    found = installed_packages(machine)
    if found is None:
        raise _failed(machine.name, "the box does not list its packages")
    changes: PackageChanges = compare(recipe.locked.as_installed(found).versions, recipe.locked.versions)
    if changes.moved:
        raise StateError(
            f"cannot install packages in {machine.name}: the lock has other versions of {_some(changes.moved)}",
            code="packages-moved",
            hint=f"`kimbox up --rebuild {machine.name}` gives the box a root with all packages of the lock",
            fields={"name": machine.name, "packages": " ".join(changes.moved)},
        )
    return dict(changes.added)


def _some(names: object) -> str:
    listed = sorted(names)  # type: ignore[call-overload]
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more


def _install(machine: Machine, packages: dict[str, LockedPackage]) -> None:
    with temporary_folder("kimbox-install-") as folder, Guest(reach(machine, "install packages in")) as guest:
        archive = folder / "packages.tar"
        with tarfile.open(archive, "w") as tar:
            for name, package in sorted(packages.items()):
                tar.add(cache.deb_of(package).resolve(), arcname=f"{name}.deb")
        steps = (
            (f"rm -rf {PLACE} && mkdir -p -m 0700 {PLACE} && tar -C {PLACE} -xf -", COPY_TIMEOUT_S, archive),
            ("sudo -n env DEBIAN_FRONTEND=noninteractive dpkg --configure -a", INSTALL_TIMEOUT_S, None),
            (APT, INSTALL_TIMEOUT_S, None),
        )
        for command, timeout_s, stdin in steps:
            answer = guest.run(command, timeout_s=timeout_s, stdin=stdin)
            if answer.code != 0:
                raise _failed(machine.name, (answer.stderr.strip() or answer.stdout.strip())[-800:])
        guest.run(f"rm -rf {PLACE}", timeout_s=60)


def _failed(name: str, reason: str) -> GuestError:
    return GuestError(
        f"the packages were not installed in {name}: {reason}",
        code="packages-not-installed",
        hint=f"the same command completes it; `kimbox up --rebuild {name}` gives the box a new root instead",
        fields={"name": name},
    )
