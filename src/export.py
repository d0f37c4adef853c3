"""Write a trained first stage, or a trained denoiser with what it needs, as others read it.

    python src/export.py ae=kl_f8 to=diffusers out=kl_f8        config.json and weights, for AutoencoderKL / VQModel.from_pretrained
    python src/export.py ae=kl_f8 to=compvis out=kl_f8          model.ckpt, the official names under state_dict
    python src/export.py ae=kl_f8 ldm=… part=ldm to=diffusers out=model      a whole pipeline, or unet/, scheduler/ …
    python src/export.py ae=kl_f8 ldm=… part=ldm to=compvis out=model        model.ckpt of the whole model; of texts tokenizer/ too

diffusers has one place for the weights; eval.weights (ema or raw) says which copy goes there.
Say the same words as for training. An existing file that differs is never overwritten.
"""

from pathlib import Path

from ldmlab.cli import command
from ldmlab.config.compose import Composed
from ldmlab.errors import ConfigError


def export(composed: Composed, words: str) -> None:
    from ldmlab.pipeline.export import export_denoiser, export_first_stage

    cfg = composed.cfg
    if cfg.to == "wandb":
        raise ConfigError("to=wandb is for report.py. export.py takes to=diffusers or to=compvis.")
    for name, example in (("to", "to=diffusers or to=compvis"), ("out", "out=folder")):
        if cfg[name] is None:
            raise ConfigError(f"{name} is not set. Give it as {example}.")
    write = export_first_stage if cfg.part == "ae" else export_denoiser
    files, notes = write(composed, cfg.to, Path(cfg.out), words)
    print("\n".join([*(f"   {cfg.to:<10}{file}" for file in files), *(f"   note: {note}" for note in notes)]))


if __name__ == "__main__":
    command(export, defaults=["until=autoencoder"])
