"""Failures of a first stage's training that raise no error. Each is one line: the symptom, the probable cause, the option to change.

Looks at the rows of the training log (means since the row before). It stops nothing: a run may recover, and a non-finite
number stops it anyway (`loop`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

from ldmlab.autoencoders.losses import ADAPTIVE_MAX

Row = dict[str, float]
PATIENCE = 3  # rows in a row before something counts as a state and not as a moment


@dataclass
class Guard:
    """`sees(rows so far, newest last; share of the budget)` → the message, or None when all is well."""

    name: str
    sees: Callable[[list[Row], float], str | None]


def recent(rows: list[Row], key: str) -> list[float] | None:
    """The last `PATIENCE` values of a quantity; None when it is not logged or not yet that often."""
    values = [row[key] for row in rows[-PATIENCE:] if key in row]
    return values if len(values) == PATIENCE else None


def codebook_falls(rows: list[Row], share: float) -> str | None:
    values = recent(rows, "codebook_usage_window")
    if values is None:
        return None
    best = max(row["codebook_usage_window"] for row in rows if "codebook_usage_window" in row)
    if max(values) < 0.5 * best:
        return (
            f"usage fell from {best:.1%} to {values[-1]:.1%} of the codes: codes die because nothing moves them back. "
            "Turn: ae/regulariser=vq_ema (restarts them), a smaller ae.fit.lr, or fewer ae.regulariser.codes."
        )
    if share > 0.2 and max(values) < 0.05:
        return (
            f"only {values[-1]:.1%} of the codes are in use after {share:.0%} of training: most started far from the data. "
            "Turn: ae/regulariser=vq_ema or fsq, or fewer ae.regulariser.codes."
        )
    return None


def discriminator_wins(rows: list[Row], share: float) -> str | None:
    values = recent(rows, "discriminator_loss")
    if values is None or max(values) > 0.05:
        return None
    return (
        f"its hinge loss is {values[-1]:.3f}: it tells every reconstruction apart, and its gradient says little. "
        "Turn: a smaller ae.loss.disc_weight, a later ae.loss.disc_start, ae/loss/discriminator=patchgan_2."
    )


def discriminator_dead(rows: list[Row], share: float) -> str | None:
    real, fake = recent(rows, "discriminator_logits_real"), recent(rows, "discriminator_logits_fake")
    if real is None or fake is None or max(abs(a - b) for a, b in zip(real, fake, strict=True)) > 0.01:
        return None
    return (
        f"real and reconstructed images get the same logits ({real[-1]:.3f}, {fake[-1]:.3f}): it learns nothing. "
        "Look whether the reconstructions are perfect already; else turn: a larger ae.fit.lr or ae.loss.discriminator.width."
    )


def adaptive_weight_at_limit(rows: list[Row], share: float) -> str | None:
    values = recent(rows, "adaptive_weight")
    if values is None or min(values) < 0.99 * ADAPTIVE_MAX:
        return None
    return (
        f"λ is {values[-1]:.0f}, its limit: the generator's gradient has vanished, so noise is multiplied by it. "
        "Turn: a later ae.loss.disc_start, or ae.loss.adaptive=false with a small ae.loss.disc_weight."
    )


def kl_collapses(rows: list[Row], share: float) -> str | None:
    values = recent(rows, "kl_bits")
    if values is None or max(values) > 0.01:
        return None
    return (
        f"{values[-1]:.4f} bits per latent element: the posterior is the prior and the decoder ignores the latent. "
        "Turn: a smaller ae.regulariser.weight (1e-6 belongs to ae.loss.reduction=sum)."
    )


def kl_explodes(rows: list[Row], share: float) -> str | None:
    values = recent(rows, "kl_bits")
    if values is None or min(values) < 200:
        return None
    return (
        f"{values[-1]:.0f} bits per latent element: the latents grow without hold. "
        "Turn: a larger ae.regulariser.weight, a smaller ae.fit.lr, or ae.fit.clip=1.0."
    )


def latent_drifts(rows: list[Row], share: float) -> str | None:
    """In the second half of training, against the median of what was before, its first quarter left out: a latent grows at first
    (a VQ encoder's from nearly nothing), and that is no drift."""
    values = recent(rows, "latent_std")
    known = [row["latent_std"] for row in rows if "latent_std" in row]
    if values is None or share < 0.5 or len(known) < 4 * PATIENCE:
        return None
    usual = median(known[len(known) // 4 : -PATIENCE])
    if any(usual / 2 <= value <= 2 * usual for value in values):
        return None
    return (
        f"the latent's standard deviation went from {usual:.3g} to {values[-1]:.3g}. A denoiser's scale is measured at the end, "
        "but such a drift often precedes divergence. Turn: a smaller ae.fit.lr, a larger ae.regulariser.weight, ae.fit.clip=1.0."
    )


GUARDS = (
    Guard("codebook usage", codebook_falls),
    Guard("discriminator wins", discriminator_wins),
    Guard("discriminator dead", discriminator_dead),
    Guard("adaptive weight", adaptive_weight_at_limit),
    Guard("KL collapse", kl_collapses),
    Guard("KL explosion", kl_explodes),
    Guard("latent drift", latent_drifts),
)


@dataclass
class Health:
    """Each guard gives its message once, and again only after its symptom was gone in between."""

    guards: tuple[Guard, ...] = GUARDS
    rows: list[Row] = field(default_factory=list)
    raised: set[str] = field(default_factory=set)

    def health_check(self, row: Row, share: float) -> list[str]:
        """New messages, as `name: text`. `share`: of the budget that is done, 0 … 1."""
        self.rows.append(row)
        news = []
        for guard in self.guards:
            text = guard.sees(self.rows, share)
            if text is None:
                self.raised.discard(guard.name)
            elif guard.name not in self.raised:
                self.raised.add(guard.name)
                news.append(f"{guard.name}: {text}")
        return news
