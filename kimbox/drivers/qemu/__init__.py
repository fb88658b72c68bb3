"""The driver `qemu`: one QEMU process for each machine, without root and without a daemon."""
