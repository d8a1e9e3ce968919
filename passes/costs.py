"""What a model and its attention sites cost in multiply-adds, under every method.

One multiply-add is two FLOPs, so shares are the same in both. A window counts every (query, key)
pair it sees, a residual its own window attention, and projections count wherever they run.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from .method import Method
from .window import SiteWindow, arrow_pairs

__all__ = ["ModelCost", "SiteCost", "attention_core"]


@dataclass(frozen=True)
class SiteCost:
    """Multiply-adds of a site at one step, for all of the batch.

    Attributes:
        projections: of query, key, value and output projections.
        attention: of query · keyᵀ and of weights · value, full.
        tokens: queries a head.
        text: range of the tokens that every window leaves full.
    """

    projections: int
    attention: int
    tokens: int
    text: tuple[int, int] = (0, 0)

    @property
    def full(self) -> int:
        """Multiply-adds of the site as trained."""
        return self.projections + self.attention

    def times(self, count: int) -> "SiteCost":
        """Return what so many runs cost."""
        return replace(self, projections=count * self.projections, attention=count * self.attention)

    def to_json(self) -> dict[str, object]:
        """Return what a plan file holds of it; text only where there is some."""
        fields: dict[str, object] = asdict(self)
        del fields["text"]
        return fields if self.text[0] == self.text[1] else {**fields, "text": list(self.text)}

    def of(self, method: Method, window: SiteWindow, *, keeps_residual: bool = False) -> int:
        """Return the multiply-adds under a method.

        Source: `(4Nd² + f·2N²d)` with the window's density f, halved where one half of CFG is
        computed (DiTFastAttn, arXiv 2406.08552). A residual costs f·2N²d on top.
        """
        if method is Method.AST:
            return 0
        seen = self.attention * arrow_pairs(self.tokens, window, self.text) // self.tokens**2
        total = self.projections + (seen if method.windowed else self.attention)
        total += seen if keeps_residual else 0
        return total // 2 if method.shares_cfg else total


@dataclass(frozen=True)
class ModelCost:
    """Multiply-adds of a model at one step, as captured, for all of the batch.

    Attributes:
        rest: of all but the eligible sites.
        sites: of each eligible site.
    """

    rest: int
    sites: Mapping[str, SiteCost]

    @property
    def full(self) -> int:
        """Multiply-adds of the whole model, uncompressed."""
        return self.rest + sum(site.full for site in self.sites.values())

    def to_json(self) -> dict[str, object]:
        """Return what a plan file holds of it."""
        return {
            "rest": self.rest,
            "sites": {name: cost.to_json() for name, cost in self.sites.items()},
        }


def attention_core(steps: int, layers: int, tokens: int, width: int, *, halves: int = 2) -> int:
    """Return the multiply-adds of attention alone over a generation: no projections.

    Source: steps · layers · halves · 2N²d (DiTFastAttn, arXiv 2406.08552).

    Args:
        steps: denoising steps.
        layers: self-attentions in the model.
        tokens: N, a sample's tokens.
        width: d, heads times head dimension.
        halves: 2 with classifier-free guidance, 1 without.
    """
    return steps * layers * halves * 2 * tokens**2 * width
