"""Many processes, one batch: torchrun or `accelerate launch` start them, DDP averages their gradients.

Every process makes the same draw for the global batch and takes every world-th row of it, so two processes compute the loss
of one, up to the order of a sum. DDP wraps the *loss*, not the network, so that forward-mode derivatives happen inside the
module whose gradients it synchronises (`torch.func.jvp` of a wrapped network would skip that silently).
"""

import os
from dataclasses import dataclass
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@final
@dataclass(frozen=True)
class Group:
    """This process among `world`."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def wrap(self, loss: nn.Module) -> nn.Module:
        """The loss with averaged gradients."""
        return DistributedDataParallel(loss) if self.world > 1 else loss

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes."""
        if self.world == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values / self.world

    def same(self, value: float) -> float:
        """The value of the first process."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, dtype=torch.float64)
        dist.broadcast(shared, 0)
        return float(shared)

    def any(self, flag: bool) -> bool:
        """Whether the flag is raised in some process."""
        if self.world == 1:
            return flag
        return bool(self.mean(torch.tensor(float(flag))) > 0)

    def barrier(self) -> None:
        """Wait for all."""
        if self.world > 1:
            dist.barrier()


def join(device: str) -> Group:
    """The group that the launcher or the caller made, or a group of one."""
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Group()
        # flags and losses are reduced on the CPU, gradients where they are
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return Group(dist.get_rank(), dist.get_world_size())
