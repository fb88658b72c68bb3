"""Talking to a running guest: ssh, events, provisioning."""
