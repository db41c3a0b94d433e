"""Until `flowmaps.learn.cost` lands: forward-pass equivalents per sample, roughly."""

from ..learn.objective import Recipe


def cost(recipe: Recipe) -> float:
    """FPE per training sample."""
    total = 0.0
    for term in recipe.terms:
        derivative = getattr(term.rule, "derivative", None) is not None
        through = getattr(term.rule, "through", "target") != "target"
        names = ("velocity", "tangent", "jump")
        asked = sum(getattr(term.rule, n, None) not in (None, "conditional") for n in names)
        total += term.share * (asked + (6 if derivative and through else 5 if derivative else 3))
    return total
