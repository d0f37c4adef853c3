"""Write a trained first stage as others read it.

    python src/export.py ae=kl_f8 to=diffusers out=kl_f8        config.json and weights, for AutoencoderKL / VQModel.from_pretrained
    python src/export.py ae=kl_f8 to=compvis out=kl_f8          model.ckpt, the official names under state_dict

Say the same words as for training. An existing file that differs is never overwritten.
"""

from pathlib import Path

from ldmlab.cli import command
from ldmlab.config import Composed
from ldmlab.errors import ConfigError


def export(composed: Composed, words: str) -> None:
    from ldmlab.exported import export

    cfg = composed.cfg
    for name, example in (("to", "to=diffusers or to=compvis"), ("out", "out=folder")):
        if cfg[name] is None:
            raise ConfigError(f"{name} is not set. Give it as {example}.")
    files, notes = export(composed, cfg.to, Path(cfg.out), words)
    print("\n".join([*(f"   {cfg.to:<10}{file}" for file in files), *(f"   note: {note}" for note in notes)]))


if __name__ == "__main__":
    command(export, defaults=["until=autoencoder"])
