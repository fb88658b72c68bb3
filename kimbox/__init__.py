"""kimbox: a YAML box spec is validated, locked, built and becomes a running, provisioned virtual machine."""

__version__ = "0.1.0"
