"""kimbox schema: print the JSON Schema of box specs."""

from __future__ import annotations

import json

from kimbox.cli.output import report
from kimbox.spec.schema import box_schema


def schema() -> None:
    """Print the JSON Schema of box specs, for editors and other programs.

    An editor with the YAML language server completes and checks a spec whose first line names the schema file:

    \b
      # yaml-language-server: $schema=kimbox.schema.json

    \b
    Examples:
      kimbox schema >kimbox.schema.json
    """
    report("schema", box_schema(), json.dumps(box_schema(), indent=2, ensure_ascii=False), is_file=True)
