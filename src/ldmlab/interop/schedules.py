"""Noise schedules as others write them: `alphas_cumprod` of the official code, scheduler_config.json of diffusers.

Shape letters: T steps.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldmlab.errors import WeightsError

TOLERANCE = 1e-4  # relative, of alphas_cumprod: float32 tables differ by 1e-7, the paper's schedules by 1e-2 and more
PREDICTS = {"eps": "epsilon", "v": "v_prediction", "z0": "sample"}
"""Words of `objective.target` and diffusers' for them."""


def difference(alpha_bar_T: Tensor, other_T: Tensor) -> str | None:
    """How the schedule of a file differs from ours (`other_T`), in one clause; None when they agree."""
    if len(alpha_bar_T) != len(other_T):
        return f"it has {len(alpha_bar_T)} steps in the file and {len(other_T)} here"
    a_T, b_T = alpha_bar_T.double(), other_T.double()
    off_T = (a_T - b_T).abs() > TOLERANCE * b_T + 1e-9
    if not off_T.any():
        return None
    t = int(off_T.nonzero()[-1])
    return f"alphas_cumprod[{t}] is {float(a_T[t]):.6g} in the file and {float(b_T[t]):.6g} here"


def read_scheduler(config: Mapping[str, Any]) -> tuple[Tensor, str]:
    """(alphas_cumprod [T], word of `objective.target`) of scheduler_config.json.

    Raises WeightsError for one that is not of the DDPM family.
    """
    kind = config.get("beta_schedule", "linear")
    predicts = config.get("prediction_type", "epsilon")
    words = {theirs: ours for ours, theirs in PREDICTS.items()}
    if predicts not in words or config.get("rescale_betas_zero_snr") or "beta_start" not in config:
        raise WeightsError(
            f"scheduler_config.json of a {config.get('_class_name')} with prediction_type={predicts} cannot be compared with "
            "objective=. Give the UNet's own folder, and an objective that you know to be its own."
        )
    T, start, end = int(config.get("num_train_timesteps", 1000)), float(config["beta_start"]), float(config["beta_end"])
    if config.get("trained_betas") is not None:
        beta_T = torch.tensor(config["trained_betas"], dtype=torch.float64)
    elif kind == "linear":
        beta_T = torch.linspace(start, end, T, dtype=torch.float64)
    elif kind == "scaled_linear":
        beta_T = torch.linspace(start**0.5, end**0.5, T, dtype=torch.float64) ** 2
    else:
        raise WeightsError(
            f"scheduler_config.json has beta_schedule={kind}; linear, scaled_linear and trained_betas can be compared with "
            "objective=. Give the UNet's own folder, and an objective that you know to be its own."
        )
    return torch.cumprod(1 - beta_T, dim=0), words[predicts]


def official_buffers(alpha_bar_T: Tensor) -> dict[str, Tensor]:
    """What `DDPM.register_schedule` keeps in a checkpoint (ldm/models/diffusion/ddpm.py; v_posterior 0), float32 [T] each.

    alpha_bar_T: float64. `lvlb_weights` is not kept there, so it is not here.
    """
    before_T = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar_T[:-1]])
    alpha_T = alpha_bar_T / before_T
    beta_T = 1 - alpha_T
    variance_T = beta_T * (1 - before_T) / (1 - alpha_bar_T)
    buffers = {
        "betas": beta_T,
        "alphas_cumprod": alpha_bar_T,
        "alphas_cumprod_prev": before_T,
        "sqrt_alphas_cumprod": alpha_bar_T.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alpha_bar_T).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - alpha_bar_T).log(),
        "sqrt_recip_alphas_cumprod": (1 / alpha_bar_T).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / alpha_bar_T - 1).sqrt(),
        "posterior_variance": variance_T,
        "posterior_log_variance_clipped": variance_T.clamp_min(1e-20).log(),
        "posterior_mean_coef1": beta_T * before_T.sqrt() / (1 - alpha_bar_T),
        "posterior_mean_coef2": (1 - before_T) * alpha_T.sqrt() / (1 - alpha_bar_T),
    }
    return {name: value_T.float() for name, value_T in buffers.items()}


def make_scheduler(alpha_bar_T: Tensor, predicts: str) -> dict[str, Any]:
    """scheduler_config.json of a DDIMScheduler with this schedule, float64 [T]; `predicts`: a key of PREDICTS.

    The official sampler's conventions: times 1, 1 + k, …, nothing clipped, the last step to alphas_cumprod[0].
    """
    before_T = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar_T[:-1]])
    return {
        "_class_name": "DDIMScheduler", "num_train_timesteps": len(alpha_bar_T), "beta_schedule": "linear", "beta_start": 0.0001,
        "beta_end": 0.02, "trained_betas": (1 - alpha_bar_T / before_T).tolist(), "prediction_type": PREDICTS[predicts],
        "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading",
    }  # fmt: skip
