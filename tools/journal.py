"""Where a search is, on disk, so that one that was stopped goes on where it was."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ditc.passes import Method, Plan
from ditc.passes.plan_file import parse_plan
from ditc.runtime.errors import DitcError

from .decisions import Checkpoint, Decided

__all__ = ["Journal", "Results"]

SLOTS, TRAJECTORY = "slots/", "trajectory/"


class Journal:
    """Where a search is, on disk: one safetensors file, replaced whole after every step."""

    def __init__(self, path: Path, arguments: Mapping[str, object]) -> None:
        self.path = path
        self._arguments = json.dumps(arguments, sort_keys=True)

    def read(self) -> Checkpoint | None:
        """Return where a search with the same arguments was, None if there is nothing of it."""
        try:
            with safe_open(self.path, "pt") as file:
                about = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        if about.get("arguments") != self._arguments:
            return None
        return Checkpoint(
            steps=tuple(_parse(step) for step in json.loads(about["steps"])),
            slots=_part(tensors, SLOTS),
            trajectory=_part(tensors, TRAJECTORY),
        )

    def write(self, checkpoint: Checkpoint) -> None:
        """Replace the file by where the search is now."""
        tensors = {f"{SLOTS}{name}": value for name, value in checkpoint.slots.items()}
        tensors |= {f"{TRAJECTORY}{name}": value for name, value in checkpoint.trajectory.items()}
        about = {
            "arguments": self._arguments,
            "steps": json.dumps([_record(step) for step in checkpoint.steps]),
        }
        whole = {name: value.contiguous().clone() for name, value in tensors.items()}
        _replace(self.path, whole, about)


class Results:
    """What a search for a budget came by, on disk: the plans, and where sampling ends without.

    Attributes:
        path: one safetensors file, replaced whole after every search.
        plans: what was found so far, by threshold.
        uncompressed: final latents of a generation without a plan, None before it was made.
    """

    def __init__(self, path: Path, arguments: Mapping[str, object]) -> None:
        self.path = path
        self.plans: dict[float, Plan] = {}
        self.uncompressed: torch.Tensor | None = None
        self._arguments = json.dumps(arguments, sort_keys=True)
        self._read()

    def keep(self, plan: Plan, threshold: float) -> None:
        """Add a plan, and replace the file."""
        self.plans[threshold] = plan
        self._write()

    def keep_uncompressed(self, latents: torch.Tensor) -> None:
        """Add the final latents of a generation without a plan, and replace the file."""
        self.uncompressed = latents
        self._write()

    def _read(self) -> None:
        try:
            with safe_open(self.path, "pt") as file:
                about = file.metadata() or {}
                latents = file.get_tensor("uncompressed")
        except (OSError, SafetensorError):
            return
        if about.get("arguments") != self._arguments:
            return
        self.uncompressed = latents
        for threshold, text in json.loads(about["plans"]):
            self.plans[threshold] = parse_plan(text, str(self.path))

    def _write(self) -> None:
        assert self.uncompressed is not None
        plans = [[threshold, plan.to_json()] for threshold, plan in self.plans.items()]
        about = {"arguments": self._arguments, "plans": json.dumps(plans)}
        _replace(self.path, {"uncompressed": self.uncompressed.contiguous()}, about)


def _replace(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, str]) -> None:
    """Replace a file whole.

    Raises:
        DitcError: if it can't be written; the one that was there stays.
    """
    unfinished = path.with_name(path.name + ".new")
    try:
        save_file(tensors, unfinished, metadata=about)
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise DitcError(f"{path}: can't be written: {error}") from error


def _part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _record(step: Decided) -> dict[str, object]:
    return {
        "methods": step.methods,
        "losses": step.losses,
        "multiply_adds": step.multiply_adds,
        "plain_multiply_adds": step.plain_multiply_adds,
    }


def _parse(record: dict[str, Any]) -> Decided:
    return Decided(
        methods={site: Method(name) for site, name in record["methods"].items()},
        losses={
            site: {Method(name): loss for name, loss in tried.items()}
            for site, tried in record["losses"].items()
        },
        multiply_adds=record["multiply_adds"],
        plain_multiply_adds=record["plain_multiply_adds"],
    )
