"""Eulerian map distillation (Boffi et al. 2024, arXiv:2406.07507), proposition 4: the teacher's velocity at the source.

`through="all"` is the paper's squared residual; `through="target"` regresses the mean velocity on the detached right-hand
side (the limit that AYF-EMD, arXiv:2506.14603, and MeanFlow take), which is the one to use on images. Additions, off by
default: `skew`, `starts` and `ends`, as in `lmd`. Deviations: none known.
"""

from ..learn.objective import Recipe, Term
from ..learn.rules import Eulerian, Through
from ..learn.times import skewed


def emd(
    through: Through = "all", skew: float | None = None, starts: float = 0.0, ends: float = 0.0
) -> Recipe:
    r"""$\|\partial_s X + \nabla X\,b_s\|^2$ with the teacher's b."""
    term = Term(rule=Eulerian("teacher", through=through), times=skewed(skew, starts, ends))
    return Recipe(name="emd", cite=("boffi2024fmm",), terms=(term,), status="exact")
