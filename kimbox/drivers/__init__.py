"""Drivers run machines: with QEMU, or with Vagrant and libvirt or VirtualBox."""
