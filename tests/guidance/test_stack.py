"""The order of guidance, and guidance from options to samples on data whose every answer is known."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldmlab import build
from ldmlab.conditioning.base import Cond
from ldmlab.conditioning.class_label import ClassLabel
from ldmlab.conditioning.compose import Compose
from ldmlab.config.compose import load
from ldmlab.diffusion.denoiser import Denoise, Denoiser
from ldmlab.diffusion.objectives import Objective, Prediction
from ldmlab.diffusion.schedules import Cosine, LinearSqrtBeta
from ldmlab.errors import ConfigError
from ldmlab.guidance.autoguidance import Autoguidance, autoguided
from ldmlab.guidance.base import Binding, Guidance, Model, ModelPair
from ldmlab.guidance.classifier import ClassifierGuidance, classifier_guided
from ldmlab.guidance.classifier_free import ClassifierFreeGuidance, classifier_free
from ldmlab.guidance.image import ImageGuidance, image_guided, resembles
from ldmlab.guidance.observations import Downsample, Mask
from ldmlab.guidance.stack import Guided, stacked
from ldmlab.networks.attention import TokenAttention
from ldmlab.networks.unet import UNet
from ldmlab.samplers.ddim import DDIM

SCHEDULE = LinearSqrtBeta()
MEAN, SPREAD = torch.tensor([0.7, -0.4]).double(), torch.tensor([0.5, 0.9]).double()  # of two equally frequent classes
Z = torch.randn(6, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
T_B = torch.tensor([30, 200, 400, 600, 800, 950])
LABEL_B = torch.tensor([0, 1, 1, 0, 1, 0])


def levels(t_B: Tensor) -> tuple[Tensor, Tensor]:
    return tuple(f(t_B, torch.float64)[:, None, None, None] for f in (SCHEDULE.alpha, SCHEDULE.sigma))  # type: ignore


def eps_of(z: Tensor, t_B: Tensor, which_B: Tensor) -> Tensor:
    alpha, sigma = levels(t_B)
    mean, spread = (v[which_B][:, None, None, None] for v in (MEAN, SPREAD))
    return sigma * (z - alpha * mean) / (alpha**2 * spread**2 + sigma**2)


class Bayes(nn.Module):
    """The exact classifier: logits log p(z_t | class)."""

    def forward(self, z: Tensor, t_B: Tensor) -> Tensor:
        alpha, sigma = levels(t_B)
        logits = []
        for mean, spread in zip(MEAN, SPREAD, strict=True):
            variance = alpha**2 * spread**2 + sigma**2
            logits.append((-((z - alpha * mean) ** 2) / (2 * variance) - variance.log() / 2).flatten(1).sum(1))
        return torch.stack(logits, 1)


class Mixture(nn.Module):
    """The exact unconditional network, with target eps: Σ p(class | z_t) eps_class."""

    def forward(self, z: Tensor, t_B: Tensor, cond: Cond) -> Tensor:
        share = Bayes()(z, t_B).softmax(1)[..., None, None, None]
        return sum(share[:, k] * eps_of(z, t_B, torch.full_like(t_B, k)) for k in (0, 1))  # type: ignore[return-value]

    def prepared(self, cond: Cond) -> Cond:
        return cond


def of_class(z: Tensor, t_B: Tensor, cond: Any) -> Prediction:
    alpha, sigma = levels(t_B)
    eps = eps_of(z, t_B, LABEL_B)
    return Prediction((z - sigma * eps) / alpha, eps)


class OneClassifier:
    """Where guidance finds the exact classifier in the place of a trained one."""

    resolution, channels, device = 3, 3, torch.device("cpu")

    def stage(self, name: str) -> Any:
        assert name == "noisy_classifier"
        return Bayes()

    def decode_with_slope(self, z_BCHW: Tensor) -> Tensor:
        raise AssertionError("nothing is decoded here")


def test_options_of_classifier_guidance_make_samples_of_the_class() -> None:
    """From words to samples: an exact mixture pushed by an exact classifier at scale 1 is the class itself, step by step."""

    def drawn_with(scale: float) -> tuple[Tensor, Tensor]:
        words = ["guidance=classifier", f"guidance.classifier.scale={scale}", "cond=none", "sampler.steps=200"]
        cfg, _ = load(words)
        sampler = build.sampler(cfg)
        kinds = tuple(kind.load(OneClassifier()) for kind in build.guidance(cfg, sampler))
        model = Model(Denoiser(Mixture(), Compose([])), build.objective(cfg))
        bound = Guided(model, kinds).bind({"label": LABEL_B}, len(Z), (3, 3), "cpu")
        known = sampler(of_class, Z, SCHEDULE, None, lambda: Z)
        return sampler(bound.denoise, Z, SCHEDULE, bound.cond, lambda: Z), known

    drawn, known = drawn_with(1)
    torch.testing.assert_close(drawn, known, rtol=1e-8, atol=1e-8)
    # And that is what the class's Gaussian makes of z_T: mean + spread · z_T, up to the steps and the start's last signal
    exact = MEAN[LABEL_B][:, None, None, None] + SPREAD[LABEL_B][:, None, None, None] * Z
    torch.testing.assert_close(drawn, exact, rtol=0.05, atol=0.05)
    assert (drawn_with(0.001)[0] - known).abs().max() > 0.3


# ---- order ---------------------------------------------------------------------------------------------------------------


def softened(strength: float) -> Denoise:
    """A stand-in of a model that hears its condition and everything else."""

    def denoise(z: Tensor, t_B: Tensor, cond: Cond) -> Prediction:
        alpha, sigma = levels(t_B)
        assert cond.vector_BD is not None
        eps = torch.tanh(strength * z + cond.vector_BD[:, :, None, None])
        return Prediction((z - sigma * eps) / alpha, eps)

    return denoise


def vector(value: float, n: int = 6) -> Cond:
    return Cond(vector_BD=torch.full((n, 1), value, dtype=torch.float64))


def auto_with(weak: Denoise, scale: float) -> Autoguidance:
    return Autoguidance(scale, weak=SimpleNamespace(denoise=weak))  # type: ignore[arg-type]


def like(log_p: Any, scale: float, interval: list[float] | None = None) -> ImageGuidance:
    return ImageGuidance("not read here", scale, interval, log_p=log_p)


def stack(denoise: Denoise, *kinds: Guidance, null: Any = None, both: Any = None) -> Denoise:
    """`denoise` guided by these kinds, which are bound to the images of this file."""
    binding = Binding({"label": LABEL_B}, null, both, SCHEDULE)
    return stacked(denoise, [kind.bind(binding) for kind in kinds])


def test_the_order_is_weak_model_null_classifier_image() -> None:
    strong, weak, log_p = softened(1.0), softened(0.4), resembles(torch.zeros_like(Z), lambda z: z.tanh())
    cond, null = ModelPair(vector(0.3), vector(-0.2)), ModelPair(vector(0.0), vector(0.1))
    both = ModelPair(cond.strong.cat(null.strong), cond.weak.cat(null.weak))
    asked = DDIM(guidance=3.0, guidance_interval=[0.3, 4.0], guidance_rescale=0.5)
    kinds = [
        like(log_p, 0.1),
        ClassifierGuidance(0.5, classifier=Bayes()),
        ClassifierFreeGuidance(asked),
        auto_with(weak, 2.0),
    ]
    found = stack(strong, *kinds, null=null.strong, both=both)(Z, T_B, cond)

    def auto(z: Tensor, t_B: Tensor, pair: ModelPair) -> Prediction:
        return autoguided(
            lambda z, t, c: strong(z, t, c.strong), lambda z, t, c: weak(z, t, c.weak), 2.0
        )(z, t_B, pair)  # fmt: skip

    by_hand = classifier_free(auto, asked, null.strong, SCHEDULE, both)
    by_hand = classifier_guided(by_hand, Bayes(), LABEL_B, 0.5, SCHEDULE)
    by_hand = image_guided(by_hand, log_p, 0.1, SCHEDULE)
    known = by_hand(Z, T_B, cond)
    torch.testing.assert_close(found.eps, known.eps)
    torch.testing.assert_close(found.z0, known.z0)


def test_each_part_alone_is_its_function_and_none_is_the_callable() -> None:
    strong, weak, plain = softened(1.0), softened(0.4), DDIM()
    cond, pair = vector(0.3), ModelPair(vector(0.3), vector(-0.2))
    log_p = resembles(torch.zeros_like(Z), lambda z: z)
    assert stack(strong) is strong and stack(strong, ClassifierFreeGuidance(plain), null=vector(0.0)) is strong
    assert build.guidance(load([]).cfg, plain) == ()
    pairs = [
        (stack(strong, auto_with(weak, 3.0))(Z, T_B, pair).eps,
         weak(Z, T_B, pair.weak).eps + 3 * (strong(Z, T_B, pair.strong).eps - weak(Z, T_B, pair.weak).eps)),
        (stack(strong, auto_with(weak, 1.0))(Z, T_B, pair).eps, strong(Z, T_B, cond).eps),
        (stack(strong, ClassifierGuidance(2.0, classifier=Bayes()))(Z, T_B, cond).eps,
         classifier_guided(strong, Bayes(), LABEL_B, 2.0, SCHEDULE)(Z, T_B, cond).eps),
        (stack(strong, like(log_p, 0.1))(Z, T_B, cond).eps,
         image_guided(strong, log_p, 0.1, SCHEDULE)(Z, T_B, cond).eps),
    ]  # fmt: skip
    for found, known in pairs:
        torch.testing.assert_close(found, known)


def test_gradients_act_within_their_interval() -> None:
    strong, cond = softened(1.0), vector(0.3)
    log_p = resembles(torch.zeros_like(Z), lambda z: z)
    alpha, sigma = levels(T_B)
    inside = (sigma / alpha).flatten() <= 1.5
    assert inside.any() and not inside.all()
    for bounded, everywhere in (
        (ClassifierGuidance(2.0, [0.0, 1.5], Bayes()), classifier_guided(strong, Bayes(), LABEL_B, 2.0, SCHEDULE)),
        (like(log_p, 0.1, [0.0, 1.5]), image_guided(strong, log_p, 0.1, SCHEDULE)),
    ):
        found: Any = stack(strong, bounded)(Z, T_B, cond)
        pushed, plain = everywhere(Z, T_B, cond), strong(Z, T_B, cond)
        torch.testing.assert_close(found.z0[inside], pushed.z0[inside])
        assert torch.equal(found.z0[~inside], plain.z0[~inside])


def test_an_erring_gradient_at_t_T_ruins_only_what_is_pushed_there() -> None:
    """At the cosine schedule's end sigma² / alpha is 2e4: a slope of 0.01, where the true one is 0, moves z_0 by hundreds."""
    schedule = Cosine()
    wrong = lambda z, t_B: 0.01 * torch.stack([z.flatten(1).sum(1), -z.flatten(1).sum(1)], 1)  # noqa: E731
    still = lambda z, t_B, cond: Prediction(torch.zeros_like(z), z)  # noqa: E731
    t_B, binding = torch.full((6,), 999), Binding({"label": torch.zeros(6, dtype=torch.long)}, None, None, schedule)
    found = [
        stacked(still, [ClassifierGuidance(1.0, interval, wrong).bind(binding)])(Z, t_B, None).z0.abs().max()
        for interval in (None, [0.0, 20.0])
    ]
    assert found[0] > 50 and found[1] == 0


# ---- one condition for all steps -----------------------------------------------------------------------------------------


def real(seed: int) -> Model:
    torch.manual_seed(seed)
    net = UNet(2, 2, 32, [1, 2], 1, attention_factors=[2], heads=2, context_dim=8)
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return Model(Denoiser(net, ClassLabel(3, dim=8)).eval().requires_grad_(False), Objective("eps", SCHEDULE))


@pytest.mark.parametrize("interval", [None, [0.3, 5.0]])
@pytest.mark.parametrize("auto", [False, True])
def test_bound_samples_equal_those_of_conditions_made_in_each_step(auto: bool, interval: list[float] | None) -> None:
    strong, weak = real(0), real(1)
    sampler = DDIM(4, guidance=2.0, guidance_interval=interval)
    label_B, z = torch.tensor([0, 1, 2]), torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    read: list[int] = []
    for model in (strong, weak):
        for module in model.denoiser.modules():
            if isinstance(module, TokenAttention):
                module.to_v.register_forward_hook(lambda m, given, out: read.append(len(out)))
    kinds = (ClassifierFreeGuidance(sampler), *([Autoguidance(1.5, weak=weak)] if auto else []))
    bound = Guided(strong, kinds).bind({"label": label_B}, 3, (4, 4), "cpu")
    once = len(read)
    found = sampler(bound.denoise, z, SCHEDULE, bound.cond, lambda: z)
    assert once == len(read) > 0 and set(read) == {3, 6}  # all of it before the first step

    ours, theirs = (m.denoiser.condition({"label": label_B}) for m in (strong, weak))
    null = strong.denoiser.conditioner.null(3, (4, 4), "cpu")
    null_weak = weak.denoiser.conditioner.null(3, (4, 4), "cpu")

    def plain(z: Tensor, t_B: Tensor, cond: Cond) -> Prediction:
        if not auto:
            return strong.denoise(z, t_B, cond)
        other = theirs if len(z) == 3 else theirs.cat(null_weak)
        return autoguided(strong.denoise, lambda z, t, c: weak.denoise(z, t, other), 1.5)(z, t_B, cond)

    known = sampler(classifier_free(plain, sampler, null, SCHEDULE), z, SCHEDULE, ours, lambda: z)
    torch.testing.assert_close(found, known, rtol=1e-5, atol=1e-5)


# ---- what is seen of a picture -------------------------------------------------------------------------------------------


def test_observations() -> None:
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    small = Downsample(2)(x)
    assert small.shape == (2, 3, 4, 4) and torch.autograd.grad(small.sum(), x)[0].sum() == pytest.approx(96)
    even = torch.full((1, 3, 8, 8), 0.3)
    torch.testing.assert_close(Downsample(4)(even), torch.full((1, 3, 2, 2), 0.3))
    seen = Mask([0.25, 0.5, 0.75, 1.0])(x)
    assert torch.equal(seen[:, :, 2:6, 4:], torch.zeros(2, 3, 4, 4, dtype=x.dtype))
    assert torch.equal(seen[:, :, :, :4], x[:, :, :, :4]) and torch.equal(seen[:, :, :2], x[:, :, :2])


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Downsample(1), "factor must be at least 2; got 1"),
        (lambda: Downsample(3).check(32), "factor=3 does not divide data.resolution=32"),
        (lambda: Mask([0.5, 0.0, 0.5, 1.0]), r"hole must be \[top, left"),
        (lambda: Mask([0.0, 0.0, 0.01, 1.0]).check(8), "no whole pixel"),
        (lambda: Mask([0.0, 0.0, 1.0, 1.0]).check(8), "the whole image"),
    ],
)
def test_observations_that_do_not_fit_are_refused(made: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made()


def test_the_decoder_of_guidance_has_a_slope_through_a_codebook() -> None:
    cfg, _ = load(["ae=vq_f4", "debug=tiny", "ae.network.width=32"])
    ae = build.autoencoder(cfg).eval().requires_grad_(False)
    z = torch.randn(1, *ae.latent_shape(16), generator=torch.Generator().manual_seed(0), requires_grad=True)
    image = ae.decode_with_slope(z)
    torch.testing.assert_close(image, ae.decode(z), rtol=1e-4, atol=1e-5)
    assert torch.autograd.grad(image.sum(), z)[0].abs().sum() > 0
