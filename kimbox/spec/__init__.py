"""YAML -> layers -> a validated, typed Box. Pure: reads files, starts nothing."""
