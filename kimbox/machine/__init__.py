"""A machine on this host: its folder, record, state, ports, keys and console."""
