"""What every stage of a running command shares: the plan, the store, the ranks and the messages to the user."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ldmlab import build
from ldmlab.config import execution
from ldmlab.data.base import ImageDataset
from ldmlab.data.batches import Batches
from ldmlab.data.latent_cache import LatentCache
from ldmlab.diffusion.denoiser import Denoiser
from ldmlab.networks.compiled import SMALL, compile_blocks
from ldmlab.store.card import stage_card
from ldmlab.store.checkpoint import Checkpoints, ShardedCheckpoints
from ldmlab.store.files import atomic, write_json
from ldmlab.store.ranks import Ranks
from ldmlab.store.store import Address, Store
from ldmlab.terminal import Progress
from ldmlab.training.ema import EMA
from ldmlab.training.kept import Kept, Start, snapshot_folder
from ldmlab.training.loop import Events, Progressed, TrainingLoss, cooldown_begins, fit, images_at
from ldmlab.training.post_hoc_ema import PowerEMA
from ldmlab.training.sharding import shard
from ldmlab.training.tracking import Tracker

if TYPE_CHECKING:
    from ldmlab.pipeline.plan import Plan


@dataclass
class Context:
    """One command. Built once in `run.execute`; every rank has its own."""

    cfg: DictConfig
    plan: "Plan"
    accelerator: Accelerator

    def of(self, plan: "Plan") -> "Context":
        """The same command for a stage of this plan, where it is another one's (pipeline.second)."""
        return self if plan is self.plan else Context(plan.resolved.cfg, plan, self.accelerator)

    @property
    def store(self) -> Store:
        return self.plan.store

    @property
    def data(self) -> ImageDataset:
        return self.plan.resolved.data

    @property
    def val(self) -> ImageDataset:
        return self.plan.resolved.val

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def ranks(self) -> Ranks:
        """This process among those of the command."""
        accelerator = self.accelerator
        return Ranks(accelerator.process_index, accelerator.num_processes, self.barrier, self.progress)

    @property
    def main(self) -> bool:
        return self.accelerator.is_main_process

    def barrier(self) -> None:
        self.accelerator.wait_for_everyone()

    def say(self, text: str) -> None:
        if self.main:
            print(text, flush=True)

    def main_decides(self, value: bool) -> bool:
        """The main process's answer, on all ranks: a file may appear between two looks."""
        if self.accelerator.num_processes == 1:
            return value
        flag = torch.tensor([float(value and self.main)], device=self.device)
        return bool(self.accelerator.reduce(flag, "sum").item())

    def _sum_over_ranks(self, seconds: float) -> float:
        if self.accelerator.num_processes == 1:
            return seconds
        spent = torch.tensor([seconds], device=self.device)
        return float(self.accelerator.reduce(spent, "sum").item())

    def progress(self, name: str, total: int) -> Callable[[int], None]:
        """A callable that takes how many more are done (of this rank's share)."""
        share = -(-total // self.accelerator.num_processes)
        bar, done = Progress(name, share, every=self.cfg.runtime.log_seconds, show=self.main), 0

        def advance(more: int) -> None:
            nonlocal done
            done = min(done + more, share)
            bar.update(done)

        return advance

    def make(
        self, address: Address, work: Callable[[Path], float | None], facts: Callable[[], dict[str, Any]] = dict
    ) -> Path:
        """The folder of a finished stage: found, or built by `work(folder)` under a lock, carded (with `facts`) and sealed.

        `work` runs on all ranks and may return the seconds that earlier attempts have spent too.
        """
        folder = self.store.folder(address)
        if self.main_decides(self.main and self.store.finished(address)):
            return folder
        with self.store.building(address, self.say) if self.main else nullcontext():
            self.barrier()
            if not self.main_decides(self.main and self.store.finished(address)):  # the one who held the lock did it
                began, cpu = time.time(), time.process_time()
                resumed = self.main and Checkpoints(folder).last() is not None
                if self.main:  # first, so that a stage that is being built says what it will be
                    with atomic(folder / "config.yaml") as beside:
                        beside.write_text(OmegaConf.to_yaml(self.cfg, sort_keys=True))
                seconds = work(folder) or time.time() - began
                whole = not resumed and seconds < time.time() - began + 1.0 and self.device.type == "cpu"
                spent = self._sum_over_ranks(time.process_time() - cpu)
                self.barrier()
                if self.main:
                    altered = self.store.altered_upstream(address)
                    of_cpu = spent if whole else None
                    card = stage_card(address, began, seconds, of_cpu, self.ranks.count, str(self.device), altered)
                    write_json(folder / "card.json", card | facts())
                    self.store.seal(address, seconds)
                    Checkpoints(folder).clear()
        self.barrier()
        return folder

    def train(
        self,
        address: Address,
        folder: Path,
        training_loss: TrainingLoss,
        dataset: Any,
        budget: DictConfig,
        validate: Callable[[], dict[str, float]] | None = None,
        group: int = 1,
        health_check: Callable[[dict[str, float], float], list[str]] = lambda row, share: [],
        power_ema: Sequence[float] = (),
        seed: int = 0,
        keep_state: bool = False,
        start: Start | None = None,
        positions: int | None = None,
    ) -> Progressed:
        """Train a stage with the one loop; leaves weights, averages and snapshots in `folder`.

        `group` images of a batch must stay in one micro-batch. `health_check`: see `loop.Events`. `power_ema`: relative widths
        of power-function averages, kept beside each snapshot as power_<width>.safetensors. `seed`: of the order of the images.
        `keep_state`: the optimisers' state stays beside the weights, at the end, at snapshots and where the cool-down begins, as
        far as a longer training could go on from there. `start`: a kept point to begin from where there is no checkpoint yet.
        `positions`: of one image in the network, where small batches of it may be trained by CUDA graphs.
        The first player is the one that is kept and averaged; another player's weights are kept under its own name.
        """
        runtime, split = self.cfg.runtime, self.shards(training_loss)
        for module in training_loss.modules.values():
            if split:
                shard(module, self.device, self.ranks.count)
            module.to(self.device)
            if not split and execution.channels_last(self.cfg, self.device, budget.precision):
                module.to(memory_format=torch.channels_last)
        first = training_loss.players[0]
        raw, end, flat = training_loss.modules[first], images_at(budget, 1.0), cooldown_begins(budget)
        optimizers = {player: build.optimizer(module, budget) for player, module in training_loss.modules.items()}
        averages: dict[str, EMA] = {first: EMA(raw, budget.ema)} if budget.ema is not None else {}
        powers = {f"power_{width:g}": PowerEMA(raw, width) for width in power_ema}
        micro = execution.micro_batch(self.cfg, budget, group)
        if execution.compiles(self.cfg, self.device) and not split:
            few = positions is not None and micro * positions <= SMALL
            alone = self.ranks.count == 1 and micro == budget.batch_size
            compile_blocks(raw, graphs=execution.records(self.cfg, self.device) and few and alone)
        kept = Kept(dict(training_loss.modules), averages | powers, optimizers)
        checkpoints = ShardedCheckpoints(folder, self.ranks) if split else Checkpoints(folder)
        if start is not None and self.main and checkpoints.last() is None:
            kept.begin(start, folder, budget.batch_size, keep_state)
        self.barrier()

        def snapshot(images: int) -> None:
            kept.write(snapshot_folder(folder, images), keep_state and images <= flat and images < end, self.main)

        events = Events(
            snapshot=snapshot,
            snapshot_at=[flat] if keep_state and flat < end else [],
            validate=validate or dict,
            health_check=health_check,
            validate_at=[i / 10 for i in range(1, 11)] if validate else [],
            checkpoint_seconds=runtime.checkpoint_seconds,
            log_seconds=runtime.log_seconds,
        )
        batches = Batches(
            dataset, budget.batch_size, micro, seed, self.device, self.ranks.rank, self.ranks.count,
            execution.workers(self.cfg, self.device, isinstance(dataset, LatentCache) and not dataset.image),
        )  # fmt: skip
        try:
            done = fit(
                address.stage, training_loss, batches, budget, optimizers, averages | powers, self.accelerator, checkpoints,
                Tracker(folder if self.main else None), events,
            )  # fmt: skip
        finally:
            self.accelerator.free_memory()
        kept.write(folder, keep_state and flat == end, self.main)
        self.barrier()
        return done

    def shards(self, training_loss: TrainingLoss) -> bool:
        """Whether this training is split among the ranks: runtime.shard and a denoiser. Other networks are replicated (DDP)."""
        denoisers = all(isinstance(module, Denoiser) for module in training_loss.modules.values())
        return bool(self.cfg.runtime.shard) and denoisers and self.ranks.count > 1


def frozen(module: nn.Module, device: torch.device) -> nn.Module:
    """On the device, in eval mode, without gradients."""
    return module.to(device).eval().requires_grad_(False)
