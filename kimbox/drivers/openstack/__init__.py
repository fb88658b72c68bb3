"""The driver `openstack`: machines that are instances in an OpenStack cloud."""
