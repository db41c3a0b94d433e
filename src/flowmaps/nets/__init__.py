"""Small reference networks `net(x, s, t, **cond)` that every rule can be applied to; any network of yours works too."""

from .build import NETS, build, describe_net, named_net
from .dit import DiT
from .mlp import MLP

__all__ = ["MLP", "NETS", "DiT", "build", "describe_net", "named_net"]
