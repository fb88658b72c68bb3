"""The driver `qemu`: one QEMU process a machine, without root and without a daemon."""
