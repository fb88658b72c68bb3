"""Drivers run machines: QEMU itself, or Vagrant with libvirt or VirtualBox."""
