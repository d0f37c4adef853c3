"""Tiny CLIP and T5 models with random weights, in folders as `transformers` writes them."""

from pathlib import Path

import torch

from ldmlab.conditioning.tokenizer import END, PAD, START, train

TEXTS = ["a large red star on a navy background", "a medium striped blue disc on a cream background"]


def save(folder: Path, kind: str, seed: int = 0) -> Path:
    """kind: clip or t5."""
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    if kind == "clip":
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        text = {
            **sizes,
            "vocab_size": 300,
            "max_position_embeddings": 77,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
        vision = {**sizes, "image_size": 32, "patch_size": 8}
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    else:
        sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
        special = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
        T5ForConditionalGeneration(T5Config(vocab_size=300, **sizes, **special)).save_pretrained(folder)
    tokenizer = train(TEXTS, 300)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=START, eos_token=END).save_pretrained(
        folder
    )
    return folder
