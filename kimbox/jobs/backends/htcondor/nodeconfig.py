"""What an administrator installs on the nodes of a pool: a startd cron that boots a tiny guest. Pure."""

from __future__ import annotations

from kimbox.jobs.backends.htcondor.description import CAPABLE

#: Names of the files: the configuration, and the program, which is the runner.
CONFIGURATION, PROGRAM = "60-kimbox.conf", "kimbox-node"

#: Where the configuration expects the program, and where the nodes keep images.
PROGRAM_PATH, CACHE = f"/usr/local/libexec/{PROGRAM}", "/var/cache/kimbox"

#: Interval between two probes. KVM may stop to work with an update of the kernel.
PERIOD = "1h"


def configuration() -> str:
    """Returns the configuration of a node."""
    return f"""\
# Written by `kimbox job node-config`. Install this file in /etc/condor/config.d, and {PROGRAM} as
# {PROGRAM_PATH} with mode 0755. Then run condor_reconfig.
#
# {PROGRAM} boots a guest of one sector, with KVM if that works, and reports {CAPABLE}, KimboxAccelerator
# (kvm, tcg or none), KimboxReason and KimboxQemu. It needs QEMU and Python 3.11.
STARTD_CRON_JOBLIST = $(STARTD_CRON_JOBLIST) KIMBOX
STARTD_CRON_KIMBOX_EXECUTABLE = {PROGRAM_PATH}
STARTD_CRON_KIMBOX_ARGS = --probe
STARTD_CRON_KIMBOX_MODE = Periodic
STARTD_CRON_KIMBOX_PERIOD = {PERIOD}

# The images of boxes, at most 20 GiB for each user: `install -d -m 1777 {CACHE}`.
STARTER_JOB_ENVIRONMENT = "KIMBOX_NODE_CACHE={CACHE}"
"""
