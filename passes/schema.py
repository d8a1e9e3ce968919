"""The JSON Schema (draft 2020-12) of plan files, for editors and for programs in any language."""

import json
from importlib.resources import files

__all__ = ["plan_schema"]


def plan_schema() -> dict[str, object]:
    """Return the schema of the plan files that this version writes and reads.

    What it refuses, `Plan.load` refuses too; that also checks what a schema can't say: that rows
    and sites match, and that no key is there twice.
    """
    schema: dict[str, object] = json.loads(
        files(__package__).joinpath("plan.schema.json").read_text(encoding="utf-8")
    )
    return schema
