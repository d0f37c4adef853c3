"""runtime.shard: what a plan says of each rank, what is refused, and what stays."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ldmlab import build
from ldmlab.conditioning.base import Cond
from ldmlab.config.compose import load
from ldmlab.errors import ConfigError
from ldmlab.pipeline import memory, per_rank
from ldmlab.pipeline.activations import activations_of, kept_tensors
from ldmlab.pipeline.run import execute, prepare

WORDS = [
    "data.train_images=64",
    "data.val_images=16",
    "data.cached=false",
    "data.resolution=16",
    "eval=none",
    "until=denoiser",
]


def plan(store: Path, *words: str):
    return prepare(load([*WORDS, f"store={store}", *words]))


@pytest.mark.parametrize(
    "words",
    [["ldm=dit_tiny", "cond=class_vector"], ["ldm=unet_tiny", "cond=class_label", "ldm.network.width=32"]],
    ids=["dit", "unet"],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_those_of_a_real_forward_pass(tmp_path: Path, words: list[str], checkpointing: bool) -> None:
    found = plan(tmp_path, "ae=identity", *words, f"ldm.network.checkpointing={checkpointing}").resolved
    cfg, n = found.cfg, 3
    real = build.denoiser(cfg, build.autoencoder(cfg), found.data)
    null = real.null(1, found.latent_shape[1:], "cpu")
    parts = {
        k: None if v is None else v.detach().repeat(n, *[1] * (v.ndim - 1)).requires_grad_()
        for k, v in vars(null).items()
    }
    z_BCHW: Tensor = torch.randn(n, *found.latent_shape)
    with kept_tensors(real.parameters()) as kept:
        real.network(z_BCHW, torch.arange(n), Cond(**parts))
    with kept_tensors(real.parameters()) as of_null:
        real.null(1, found.latent_shape[1:], "cpu")
    assert (
        activations_of(found.denoiser, found.latent_shape, n, "fp32")
        == sum(kept.values()) + n * sum(of_null.values())
        > 1000
    )


def test_a_dry_run_says_what_each_rank_holds_and_sends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "ae=identity",
        "ldm=dit_tiny",
        "cond=class_vector",
        "ldm.fit.batch_size=96",
        "runtime.micro_batch=5",
        "runtime.processes=8",
    ]
    execute(load([*WORDS, *words, f"store={tmp_path}", "dry_run=true", "runtime.shard=true"]), "train")
    said = capsys.readouterr().out
    assert "on each of 8 ranks" in said and "runtime.shard=true (this run)" in said and "DDP (this run)" not in said
    assert "batch 96 = 8 ranks x 12 images = 8 x 3 micro-batches of 4" in said
    resolved = plan(tmp_path, *words).resolved
    held = per_rank.training_of(resolved, 8).split()
    for name, value in ({"weights": held.weights, "sent in each step": held.sent}).items():
        (line,) = [line for line in said.splitlines() if line.split("  ")[0].strip() == name]
        assert line.endswith(per_rank.size(value))
    execute(
        load([*WORDS, "ae=identity", "ldm=dit_tiny", "cond=class_vector", f"store={tmp_path}", "dry_run=true"]), "train"
    )
    assert "ranks" not in capsys.readouterr().out


def test_sizes_are_read_by_people() -> None:
    assert [per_rank.size(n) for n in (7, 1_234, 56_700_000, 8_900_000_000)] == ["7 B", "1.23 kB", "56.7 MB", "8.9 GB"]


def test_a_network_that_fits_only_in_parts_is_not_refused(tmp_path: Path) -> None:
    words = ["ae=identity", "ldm=dit_tiny", "cond=class_vector", "ldm.fit.batch_size=64", "runtime.processes=8"]
    whole, split = (
        memory.needed(plan(tmp_path, *words, f"runtime.shard={shard}").resolved)["ldm"] for shard in (False, True)
    )
    assert split == per_rank.needed(plan(tmp_path, *words).resolved) < whole / 2


def test_ids_are_those_without_it(tmp_path: Path) -> None:
    words = ["ae=identity", "ldm=dit_tiny", "cond=class_vector", "ldm.fit.batch_size=64"]
    one, many = plan(tmp_path, *words), plan(tmp_path, *words, "runtime.processes=4", "runtime.shard=true")
    assert [stage.address.id for stage in one.order] == [stage.address.id for stage in many.order]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ae=identity", "runtime.compile=true"], r"^runtime\.compile=true with runtime\.shard=true: .* Use runtime\.compile=false"),
        (["ae=identity", "runtime.channels_last=true"], r"^runtime\.channels_last=true with runtime\.shard=true: .* Use "),
        (["ae=identity", "ldm=gaussian", "eval.weights=raw"], r"^runtime\.shard=true .*ldm=gaussian is fitted.* Use runtime\.shard=false"),
        (
            ["ae=kl_f8", "data.resolution=64", "ae.loss.norm_images=1"],
            r"^runtime\.shard=true .*its discriminator, which train in turn, and the autoencoder \w{12} is not trained yet\. "
            r"Train it first: .*runtime\.shard=false until=autoencoder",
        ),
    ],
    ids=["compile", "channels_last", "closed form", "discriminator"],
)  # fmt: skip
def test_what_cannot_be_sharded_is_refused(tmp_path: Path, words: list[str], said: str) -> None:
    typed = [w for w in WORDS if w.partition("=")[0] not in {v.partition("=")[0] for v in words}]
    composed = load([*typed, *words, f"store={tmp_path}", "runtime.shard=true", "runtime.processes=2"])
    with pytest.raises(ConfigError, match=said):
        execute(composed, "train")
    assert not list(tmp_path.glob("*/*/config.yaml"))
