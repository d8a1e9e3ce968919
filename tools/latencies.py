"""What each method takes at each site on one target: measured, kept as JSON, read strictly."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ditc.passes import Identity, Method, Plan, Program
from ditc.passes.identity import CFG_LAYOUTS, compatible
from ditc.passes.liveness import kept_residuals
from ditc.passes.plan_fields import read_text
from ditc.passes.window import SiteWindow
from ditc.passes.window_file import read_window
from ditc.runtime.errors import BundleError, PlanError
from ditc.runtime.fields import (
    load_json,
    read_choice,
    read_integer,
    read_mapping,
    read_number,
    read_shape,
)

from .places import replace_text

__all__ = ["Latencies", "SiteLatency"]

FORMAT = "ditc-latencies"
VERSION = 1
LAYOUTS = (*CFG_LAYOUTS, None)
AGAIN = "measure again with 'ditc bench MODEL --sites'"
LARGEST_MS = 1e12


@dataclass(frozen=True)
class SiteLatency:
    """Wall time of one site in a step, in milliseconds, for all of the batch.

    Attributes:
        ms: under each method that the site can have; `full` is always there.
        keeping_ms: under methods with full attention that also keep the residual.
    """

    ms: Mapping[Method, float]
    keeping_ms: Mapping[Method, float]

    def for_merging(self) -> dict[str, float]:
        """Return it as merging steps takes it: what keeping a residual adds is `residual`."""
        kept = [ms - self.ms[method] for method, ms in self.keeping_ms.items() if method in self.ms]
        residual = {"residual": max(0.0, *kept)} if kept else {}
        return {str(method): ms for method, ms in self.ms.items()} | residual


@dataclass(frozen=True)
class Latencies:
    """What each method takes at each site on one target.

    Attributes:
        target: what was measured, such as `onnx, CPUExecutionProvider`.
        threads: threads within an operator, None for as many as the engine takes.
        batch: size of the model's batch, twice the samples with CFG.
        identity: the model that was measured.
        latents: shape of one sample's latents, without the batch.
        cfg: layout of classifier-free guidance, None without.
        windows: window of each site.
        step_ms: wall time of a whole step, uncompressed.
        sites: wall times of each site.
        ditc: version that measured.
    """

    target: str
    threads: int | None
    batch: int
    identity: Identity
    latents: tuple[int, ...]
    cfg: str | None
    windows: Mapping[str, SiteWindow]
    step_ms: float
    sites: Mapping[str, SiteLatency] = field(repr=False)
    ditc: str = ""

    def saved_ms(self, site: str, method: Method) -> float:
        """Return what a method saves at a site in a step; 0 for one that wasn't measured there."""
        ms = self.sites[site].ms
        return ms[Method.FULL] - ms.get(method, ms[Method.FULL])

    def faster(self, site: str, method: Method) -> bool:
        """Return whether a method is known to be faster than `full` at a site."""
        return self.saved_ms(site, method) > 0

    def keeping_extra_ms(self, site: str, method: Method) -> float:
        """Return what keeping a residual adds to a method at a site; 0 if it wasn't measured."""
        found = self.sites[site]
        if method not in found.keeping_ms:
            return 0.0
        return max(found.keeping_ms[method] - found.ms[method], 0.0)

    def predicted_ms(self, plan: Plan) -> float:
        """Return what a generation takes in the engine, of this batch.

        A step is an uncompressed one less what its sites save, though never below 0: sites that
        were measured alone may save more together than a step takes. A step that keeps a residual
        takes what was measured with the residual; if that was less than without, as much.
        """
        return sum(self._step_ms(plan, step) for step in range(plan.steps))

    def _step_ms(self, plan: Plan, step: int) -> float:
        kept = kept_residuals(plan, step)
        total = self.step_ms
        for site in self.sites:
            method = plan.method(step, site)
            total -= self.saved_ms(site, method)
            if site in kept:
                total += self.keeping_extra_ms(site, method)
        return max(total, 0.0)

    def check(self, program: Program, windows: Mapping[str, SiteWindow]) -> None:
        """Refuse another model than was measured, or other windows.

        Raises:
            PlanError: naming what differs.
        """
        if not self.identity.matches(program.identity):
            same = self.identity.same_class(program.identity)
            found = "another configuration of it" if same else program.identity.model
            raise PlanError(
                f"latencies are of {self.identity.model}, the model is {found}: {AGAIN}"
            )
        same = self.latents == program.latents.shape[1:] and compatible(self.cfg, program.cfg)
        if not same:
            raise PlanError(
                f"latencies are of latents {list(self.latents)}, CFG {self.cfg or 'none'}; the "
                f"model has {list(program.latents.shape[1:])}, {program.cfg or 'none'}: {AGAIN}"
            )
        for site, window in windows.items():
            if self.windows.get(site) != window:
                raise PlanError(
                    f"latencies of site {site} are of {self.windows.get(site)}, the search has "
                    f"{window}: {AGAIN}"
                )

    def save(self, path: Path) -> None:
        """Write them as JSON: beside the place first, then renamed."""
        replace_text(path, self.to_json())

    def to_json(self) -> str:
        """Return them as JSON text."""
        record = {
            "format": FORMAT,
            "version": VERSION,
            "ditc": self.ditc,
            "target": self.target,
            "threads": self.threads,
            "batch": self.batch,
            "for": {**asdict(self.identity), "latents": self.latents, "cfg": self.cfg},
            "windows": {site: window.to_json() for site, window in self.windows.items()},
            "step_ms": self.step_ms,
            "sites": {
                site: {"ms": _by_name(found.ms), "keeping_ms": _by_name(found.keeping_ms)}
                for site, found in self.sites.items()
            },
        }
        return json.dumps(record, indent=1) + "\n"

    @classmethod
    def load(cls, path: Path) -> "Latencies":
        """Read latencies.

        Raises:
            PlanError: if the file is missing, of another format or a newer version, or malformed.
        """
        try:
            return _parse(load_json(path.read_text(encoding="utf-8"), "file"))
        except OSError as error:
            raise PlanError(f"latencies {path}: can't be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise PlanError(f"latencies {path}: can't be read: {error}") from error
        except (BundleError, PlanError) as error:
            raise PlanError(f"latencies {path}: {error}") from error


def _by_name(times: Mapping[Method, float]) -> dict[str, float]:
    return {str(method): ms for method, ms in times.items()}


def _parse(record: object) -> Latencies:
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise PlanError(f'no latencies: expected an object with "format": "{FORMAT}"; {AGAIN}')
    version = read_integer(record.get("version"), "version", 1, 2**31)
    if version > VERSION:
        raise PlanError(f"version {version} is newer than {VERSION}: upgrade ditc to read it")
    names = ("ditc", "target", "threads", "batch", "for", "windows", "step_ms", "sites")
    top = _fields(record, "latencies", ("format", "version", *names))
    held = _fields(top["for"], "for", ("model", "config_sha256", "latents", "cfg"))
    windows = _named(top["windows"], "windows")
    sites = _named(top["sites"], "sites")
    if set(windows) != set(sites):
        (name, *_) = sorted(set(windows) ^ set(sites))
        raise PlanError(f"site {name!r} is in one of windows and sites, expected both; {AGAIN}")
    threads = top["threads"]
    return Latencies(
        target=read_text(top["target"], "target"),
        threads=None if threads is None else read_integer(threads, "threads", 1, 2**31),
        batch=read_integer(top["batch"], "batch", 1, 2**31),
        identity=Identity(
            read_text(held["model"], "for.model"),
            read_text(held["config_sha256"], "for.config_sha256"),
        ),
        latents=read_shape(held["latents"], "for.latents"),
        cfg=read_choice(held["cfg"], "for.cfg", LAYOUTS),
        windows={name: read_window(value, f"windows.{name}") for name, value in windows.items()},
        step_ms=_ms(top["step_ms"], "step_ms"),
        sites={name: _site(value, f"sites.{name}") for name, value in sites.items()},
        ditc=read_text(top["ditc"], "ditc"),
    )


def _site(value: object, where: str) -> SiteLatency:
    fields = _fields(value, where, ("ms", "keeping_ms"))
    found = SiteLatency(*(_times(fields[name], f"{where}.{name}") for name in ("ms", "keeping_ms")))
    if Method.FULL not in found.ms:
        raise PlanError(f"{where}.ms: 'full' is missing, there is nothing to compare with; {AGAIN}")
    for method in found.keeping_ms:
        if method not in found.ms or not method.runs_full_attention:
            raise PlanError(f"{where}.keeping_ms: {method} isn't expected there; {AGAIN}")
    return found


def _times(value: object, where: str) -> dict[Method, float]:
    known = read_mapping(value, where)
    return {
        Method(read_choice(name, where, tuple(map(str, Method)))): _ms(ms, f"{where}.{name}")
        for name, ms in known.items()
    }


def _ms(value: object, where: str) -> float:
    ms = read_number(value, where)
    if not 0 < ms <= LARGEST_MS:
        raise PlanError(
            f"{where}: is {ms:g}, expected milliseconds above 0, {LARGEST_MS:g} at most"
        )
    return ms


def _named(value: object, where: str) -> dict[str, object]:
    found = read_mapping(value, where)
    for name in found:
        read_text(name, f"{where}: name of a site")
    if not found:
        raise PlanError(f"{where}: names no site; {AGAIN}")
    return found


def _fields(value: object, where: str, names: tuple[str, ...]) -> dict[str, object]:
    """Return an object's fields in the order of `names`, which are all that it may have."""
    found = read_mapping(value, where)
    for name in names:
        if name not in found:
            raise PlanError(f"{where}: field {name!r} is missing; {AGAIN}")
    for name in found:
        if name not in names:
            raise PlanError(f"{where}: unknown field {name!r}")
    return {name: found[name] for name in names}
