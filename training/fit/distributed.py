"""Training with several processes: the rank of this one, and the operations that they share.

    torchrun --nproc-per-node 2 -m -- training fit --run runs/mine …

(Without the two dashes torchrun takes our --run for its own --run-path.)
Each process takes every N-th row of the batch of a single process, DDP averages the gradients, and metrics
are added as sums and counts, so N processes compute the same as one. Outside torchrun there is no process
group, and everything here is a no-op.
"""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # documented, all the same
from torch.nn.parallel import DistributedDataParallel

from training.config import ConfigError
from training.data.images import Indices

# The first process may read a million images for an hour while the others wait. torchrun notices a process
# that died at once, independent of this timeout.
PATIENCE = timedelta(hours=3)

Rows = TypeVar("Rows", Tensor, Indices)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process among all processes of a run; one process by default."""

    rank: int = 0
    size: int = 1
    local: int = 0  # its number on this machine
    launched: bool = False  # by torchrun, which also restarts it after a crash
    restarts: int = 0  # by torchrun so far

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def mine(self, rows: Rows) -> Rows:
        """This process's share of a batch: every size-th row."""
        return rows[self.rank :: self.size]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, the same for each."""
        if self.size > 1:
            tensor = tensor.clone()
            distributed.all_reduce(tensor)
        return tensor

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in any process: if one stopped alone, the others would wait for it."""
        return bool(self.sum(torch.tensor(float(flag), device=device))) if self.size > 1 else flag

    def share(self, compute: Callable[[], Value]) -> Value:
        """The result of `compute` in the first process, so only its machine needs the files of the run."""
        if self.size == 1:
            return compute()
        values: list[Any] = [compute() if self.first else None]
        distributed.broadcast_object_list(values, src=0)
        value: Value = values[0]
        return value

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Run the first process of each machine before the others: it fills the download cache."""
        if self.local > 0:
            self.sum(torch.zeros(()))  # waits for all processes
        yield
        if self.local == 0:
            self.sum(torch.zeros(()))

    def device(self, name: str) -> torch.device:
        """`auto`: this process's GPU if torch sees one, else the CPU. ConfigError if it is not there."""
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cuda" and self.launched:
            name = f"cuda:{self.local}"
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:  # what torch raises without CUDA
            raise ConfigError(f"device {name!r} cannot be used here: {error}") from error
        return torch.device(name)

    def parallel(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network wrapped so that its gradients are averages over all processes."""
        if self.size == 1:
            return network
        return DistributedDataParallel(
            network, device_ids=[device] if device.type == "cuda" else None, forward_sync_buffers=False
        )


def join() -> Ranks:
    """Join the process group if torchrun started this process. Call `leave` at the end."""
    if not distributed.is_torchelastic_launched():
        return Ranks()
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    ranks = Ranks(rank, size, local, launched=True, restarts=int(os.environ["TORCHELASTIC_RESTART_COUNT"]))
    if size > 1:
        backend = "gloo"
        if local < torch.cuda.device_count():
            torch.cuda.set_device(local)
            backend = "cpu:gloo,cuda:nccl"
        if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
            distributed.init_process_group(
                backend, timeout=PATIENCE, store=_store(ranks), rank=rank, world_size=size
            )
        else:
            distributed.init_process_group(backend, timeout=PATIENCE)
    return ranks


def _store(ranks: Ranks) -> PrefixStore:
    """The store through which the processes of one machine find each other, new after each restart.

    torchrun 2.13 keeps one store over restarts. Processes then read addresses of dead processes from it and
    wait for them forever. Restarts are counted per machine, so this does not work for several; there
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes torchrun open a new store each time.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=ranks.first and not shared
    )
    return PrefixStore(f"restart-{ranks.restarts}", store)


def leave(ranks: Ranks) -> None:
    """Leave the process group. Not after an error: processes would wait for each other.

    Reference cycles keep the parallel network and with it the group alive. Its threads would then run until
    the interpreter exits and sometimes abort the process, hence the collection.
    """
    if ranks.size > 1:
        gc.collect()
        distributed.destroy_process_group()
