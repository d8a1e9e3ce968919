"""The five methods a site can use at a step."""

from enum import StrEnum

from ditc.runtime.errors import PlanError

__all__ = ["Method", "parse_method"]


class Method(StrEnum):
    """What a site computes at a step (DiTFastAttn, arXiv 2406.08552)."""

    FULL = "full"
    ASC = "asc"
    WA_RS = "wa-rs"
    WA_RS_ASC = "wa-rs+asc"
    AST = "ast"

    @property
    def windowed(self) -> bool:
        """Whether it uses window attention and a kept residual."""
        return self in (Method.WA_RS, Method.WA_RS_ASC)

    @property
    def shares_cfg(self) -> bool:
        """Whether it computes the conditional half only."""
        return self in (Method.ASC, Method.WA_RS_ASC)

    @property
    def unshared(self) -> "Method":
        """The same without sharing across CFG, as of one half by itself or of equal halves."""
        halved = {Method.ASC: Method.FULL, Method.WA_RS_ASC: Method.WA_RS}
        return halved.get(self, self)

    @property
    def runs_full_attention(self) -> bool:
        """Whether it sees every key, so that a residual can be taken from it."""
        return self in (Method.FULL, Method.ASC)


def parse_method(text: object, where: str) -> Method:
    """Return the method of that name.

    Raises:
        PlanError: naming `where` and the methods there are.
    """
    try:
        return Method(text)  # type: ignore[arg-type]
    except ValueError:
        known = ", ".join(Method)
        raise PlanError(f"{where}: unknown method {text!r}, expected one of {known}") from None
