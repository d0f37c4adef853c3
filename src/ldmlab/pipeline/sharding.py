"""What runtime.shard=true cannot split, said before anything is built."""

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from ldmlab.errors import ConfigError
from ldmlab.pipeline.decoder import DecoderStage
from ldmlab.pipeline.first_stage import FirstStage

if TYPE_CHECKING:
    from ldmlab.pipeline.plan import Plan


def check_options(cfg: DictConfig) -> None:
    """ConfigError for options of `runtime` that do not go together with runtime.shard=true."""
    runtime = cfg.runtime
    if not runtime.shard:
        return
    if str(runtime.compile).lower() == "true":
        raise ConfigError(
            "runtime.compile=true with runtime.shard=true: a sharded network is not compiled here. "
            "Use runtime.compile=false, or runtime.shard=false."
        )
    if str(runtime.channels_last).lower() == "true":
        raise ConfigError(
            "runtime.channels_last=true with runtime.shard=true: shards are rows of contiguous tensors. "
            "Use runtime.channels_last=auto or false, or runtime.shard=false."
        )


def complaint(plan: "Plan") -> str | None:
    """One sentence where the run would train something that is not split; None where it may run."""
    cfg = plan.resolved.cfg
    if not cfg.runtime.shard:
        return None
    if plan.resolved.denoiser.closed_form:
        return (
            "runtime.shard=true splits a training, and ldm=gaussian is fitted in closed form. Use runtime.shard=false."
        )
    for stage in plan.order:
        if isinstance(stage, FirstStage | DecoderStage) and stage.trains and plan.store.done(stage.address) is None:
            two = cfg.ae.loss is not None and cfg.ae.loss.discriminator is not None
            why = "a first stage and its discriminator, which train in turn" if two else "a first stage"
            return (
                f"runtime.shard=true splits denoisers and not {why}, and the {stage.name} {stage.address.id} is not trained yet. "
                "Train it first: the same command with runtime.shard=false until=autoencoder; its id is the same."
            )
    return None


def check(plan: "Plan") -> None:
    """ConfigError with `complaint`."""
    if found := complaint(plan):
        raise ConfigError(found)
