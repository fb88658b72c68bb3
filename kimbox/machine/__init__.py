"""The life of a machine: its folder, its states, the provider that runs it."""
