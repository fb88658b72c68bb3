"""The driver `vagrant`: machines that Vagrant runs under libvirt or VirtualBox."""
