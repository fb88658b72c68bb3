"""A running guest, seen from the host: ssh, events, delivery, audit."""
