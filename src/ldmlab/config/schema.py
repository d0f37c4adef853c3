"""The typed schema of plain options: each field says its type, its range, its words and what else it must be (ldmlab/ranges.py).

Options of parts (nodes with a `_target_`) are declared where the part's constructor is. OmegaConf reads the types of these
dataclasses, `values.py` reads the rest. MISSING must come from conf/ or from the command line.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any

from omegaconf import MISSING

from ldmlab.ranges import (
    AutoOr,
    Batch,
    Choices,
    FilePath,
    Fraction,
    Images,
    Items,
    MaybeImages,
    Moment,
    OneOrMany,
    Part,
    PictureSize,
    Positive,
    Range,
    Seed,
    Share,
    Width,
)

STAGES = ("autoencoder", "latents", "denoiser", "samples", "scores", "report")

Rate = Annotated[float, Range(above=0, at_most=100)]
At = Annotated[float, Moment(at_least=0, at_most=1)]  # a fraction of the training, or a count of images
Snapshots = Annotated[list[At], Items(distinct=True)]
Node = Annotated[Any, Part()]
MaybeNode = Annotated[Any, Part(null=True)]
Text = Annotated[str, FilePath()]
Precision = Annotated[str, Choices(("fp32", "bf16"))]
Workers = Annotated[int, Range(at_least=0, at_most=4_096)]
Processes = Annotated[int, Range(at_least=1, at_most=4_096)]
Counted = Annotated[int, Range(at_least=2, at_most=10**8)]  # images behind a statistic: of one there is no spread
Power = Annotated[float, Range(above=0, at_most=0.28)]  # relative width of a power-function average (2312.02696, eq. 7)


@dataclass
class Fit:
    """How long and how one network is trained. Durations are in images; batch size is the total over all ranks."""

    images: Images = MISSING
    batch_size: Batch = MISSING
    lr: Rate = MISSING  # final learning rate; never multiplied by anything
    betas: Annotated[list[Share], Items(2, 2, what="two numbers in [0, 1)")] = field(
        default_factory=lambda: [0.9, 0.999]
    )
    weight_decay: Annotated[float, Range(at_least=0, at_most=100)] = 0.0
    clip: Positive | None = None  # gradient norm
    precision: Precision = "fp32"  # bf16: autocast; weights and averages stay fp32
    ema: Fraction | None = None  # decay of the averaged copy, warm-up min(ema, (1+n)/(10+n)) after n steps
    warmup: MaybeImages = 0  # images over which the learning rate rises linearly
    cooldown: MaybeImages = 0  # last images over which it falls linearly to 0
    snapshots: Snapshots = field(default_factory=list)  # fractions of `images`, or counts, at which weights are kept


@dataclass
class OptimizedFit(Fit):
    """The training of a first stage or a denoiser, whose optimiser is a choice."""

    optimizer: Annotated[str, Choices(("adamw", "muon"))] = (
        "adamw"  # muon: between hidden layers (ldmlab.training.muon)
    )


@dataclass
class ContinuableFit(OptimizedFit):
    """The training of a stage that a longer one may continue (ldmlab.pipeline.continuation)."""

    # the optimiser's state stays at the end, at each snapshot and where a cool-down begins: 8 bytes a parameter each time
    keep_state: bool = True


@dataclass
class LatentScale:
    """How the latents are brought to unit variance: measured over `images` training images after training, or given."""

    mode: Annotated[  # first_batch_std: the paper's code; stored: in ae.weights
        str, Choices(("global", "per_channel", "first_batch_std", "none", "given", "stored"))
    ] = "global"
    images: Images = 2048
    scale: Annotated[Any, OneOrMany(Range(above=0, at_most=1e6))] = None  # mode=given: z = (raw - shift) * scale
    shift: Annotated[Any, OneOrMany(Range(at_least=-1e6, at_most=1e6))] = None  # mode=given; null is 0


@dataclass
class AE:
    """The first stage: a network, a regulariser, a loss and a training budget (`fit: null` = nothing to train)."""

    network: Node = MISSING
    regulariser: Node = MISSING
    loss: MaybeNode = None
    latent_scale: LatentScale = field(default_factory=LatentScale)
    fit: ContinuableFit | None = None
    # decoder: the finished stage's decoder learns on, its latents stay what they are
    train: Annotated[str, Choices(("all", "decoder"))] = "all"
    tile: Width | None = (
        None  # pixels a side: larger images go through in overlapping tiles (memory; changes results a little)
    )
    recipe: bool = False  # true: network, loss and budget belong together, and an experiment's presets leave them alone
    decoder_fit: OptimizedFit | None = None  # budget of train=decoder
    weights: Text | None = None  # a file or folder of trained weights; then loss and fit are null: nothing is trained
    seed: Seed | None = None  # null: the run's


TARGETS = ("parameters", "flops_per_image", "flops_per_step")  # of a budget; one at most is given


@dataclass
class Budget:
    """What the denoiser may cost. One target at most; it takes the place of `ldm.network.width` (ldmlab.pipeline.budget).

    fair: what all cells of a study have in common with the reference, `ldm.network` on latents of factor reference_f with
    reference_c channels, sized to the target where one is given.
    """

    parameters: Annotated[float, Range(above=0, at_most=1e15)] | None = None  # of the network
    flops_per_image: Annotated[float, Range(above=0, at_most=1e24)] | None = None  # of training: three forward passes
    flops_per_step: Annotated[float, Range(above=0, at_most=1e30)] | None = None  # the same for a whole batch
    tolerance: Annotated[float, Range(above=0, at_most=100)] = 0.1  # how far, relatively, the nearest width may be off
    fair: Annotated[str, Choices(("flops", "network", "time", "parameters"))] | None = None  # fair=…
    reference_f: Annotated[int, Range(at_least=1, at_most=1_024)] = 4
    reference_c: Annotated[int, Range(at_least=1, at_most=16_384)] = 3


@dataclass
class LDM:
    """The denoiser: a network and its training budget."""

    network: Node = MISSING
    budget: Budget = field(default_factory=Budget)
    fit: ContinuableFit | None = field(default_factory=ContinuableFit)
    weights: Text | None = None  # a file or folder of trained weights; then fit is null: nothing is trained
    start: Text | None = None  # a file or folder of trained weights that training begins with: fine-tuning
    power_ema: Annotated[list[Power], Items(distinct=True)] = field(
        default_factory=list
    )  # relative widths, [0.05, 0.1]: for eval.ema_width (2312.02696)
    seed: Seed | None = None  # null: the run's


@dataclass
class Tune:
    """tune=lr: the denoiser's learning rate is the best of ldm.fit.lr times each factor, by short runs (pipeline.learning_rate)."""

    factors: Annotated[list[Positive], Items(at_least=2, at_most=9, distinct=True)] = field(
        default_factory=lambda: [1 / 3, 1.0, 3.0]
    )
    share: Annotated[float, Range(above=0, at_most=1)] = 0.1  # of ldm.fit.images: the length of a short run
    val_images: Counted = 512
    seed: Seed = 104_729  # of the short runs, and of nothing else


@dataclass
class Conditioning:
    """The denoiser's condition; `label` and `prompt` are conditions at sampling time and not part of the trained network.

    Of several, `cond=[class_label,semantic]`, `parts` has each one's own options by its name and `conditioner` is null.
    """

    conditioner: MaybeNode = MISSING
    drop: Fraction = 0.0  # probability per example of training without the condition; without all of them together
    parts: Any = None
    apart: bool = False  # each of `parts` is dropped by itself, with its own probability
    label: Any = None
    prompt: str | None = None  # of all samples, of a denoiser that reads texts; null: captions of val images


@dataclass
class Latents:
    """The cache of encoded training images."""

    # auto: when the data set is finite and augmented by flips at most
    cache: Annotated[str, Choices(("auto", "always", "never"))] = "auto"
    dtype: Annotated[str, Choices(("float16", "float32"))] = "float16"
    verify: bool = False  # encode 64 images again and compare with the cache's certificate


@dataclass
class Large:
    """Pictures of another size than the denoiser was trained at (`size`), which bounds what sampling them takes. Pixels everywhere."""

    # a side of overlapping windows, through which the denoiser sees the latent; null: it sees the whole at once
    window: Width | None = None
    overlap: Annotated[int, Range(at_least=0, at_most=16_384)] | None = (
        None  # of neighbouring windows; null: half a window
    )
    # official: grows with the distance to the window's border, as released; mean: all alike
    weights: Annotated[str, Choices(("official", "mean"))] = "official"
    tile: Width | None = None  # a side of the first stage's tiles; null: ae.tile


@dataclass
class Reference:
    split: Annotated[str, Choices(("train", "val", "test"))] = "train"
    images: Counted | None = None  # null: the whole split


@dataclass
class Eval:
    """The evaluation protocol; everything here is on the card that comes with each number, but `batch_size`."""

    extractor: MaybeNode = None  # null: nothing is scored by features (eval=none)
    extractor_fit: Fit | None = None  # budget of an extractor that is trained here (shapes)
    # names of conf/metric/<name>.yaml
    metrics: Annotated[list[str], Items(at_least=1, distinct=True)] = field(
        default_factory=lambda: ["fid", "is", "kid", "precision", "recall"]
    )
    samples: Counted = 5000
    label_mode: Annotated[str, Choices(("uniform", "random", "from_data"))] = "uniform"
    reference: Reference = field(default_factory=Reference)
    bootstrap: Annotated[int, Range(at_least=2, at_most=1_000_000)] = 200
    seed: Seed | None = 0  # null: the run's
    # of samples. pixels: drawn in pixels and projected on components of patches, so that runs of other f share it (pipeline.noise_basis)
    noise: Annotated[str, Choices(("latent", "pixels"))] = "latent"
    batch_size: Batch = 64
    weights: Annotated[str, Choices(("ema", "raw"))] = "ema"
    precision: Precision = (
        "fp32"  # of denoisers while samples are drawn; bf16: autocast. Samplers and decoders stay fp32
    )
    # an average of this relative width, made from ldm.power_ema; null: ldm.fit.ema's
    ema_width: Power | None = None
    # fractions of the training, or counts of images, whose snapshots are scored
    at: Annotated[list[At], Items(at_least=1, distinct=True)] = field(default_factory=lambda: [1.0])
    # images over which each scored snapshot is cooled down first, or a fraction of those it has seen; null: scored as it is
    cooldown: Annotated[float, Moment(above=0, at_most=1)] | None = None
    reconstructions: Counted = 1000  # val images for PSNR, SSIM, rFID, at most


@dataclass
class Segmenter:
    """The network that judges maps and boxes in samples (metrics.segmenter), trained where a metric needs it."""

    width: Annotated[int, Range(at_least=1, at_most=1_024)] = 24  # channels at full size
    fit: Fit = field(default_factory=Fit)


@dataclass
class Runtime:
    """How a result is computed. Nothing here changes what is computed, nothing here is in an id."""

    device: Annotated[str, Choices(("auto", "cpu", "cuda"))] = "auto"
    processes: Processes = 1  # ranks that this command starts itself; under torchrun leave it at 1
    # true: a denoiser's weights, gradients, optimiser state and averages are split among the ranks (ldmlab.training.sharding)
    shard: bool = False
    micro_batch: Batch | None = None  # images per forward pass and rank at most; the rest is accumulated
    workers: Workers | Annotated[str, Choices(("auto",))] = "auto"  # loader processes per rank (config.execution)
    threads: Processes | None = None  # CPU threads per rank; null: cores / ranks
    timeout: Positive = 3600.0  # seconds that ranks wait for each other
    checkpoint_seconds: Positive = 300.0
    log_seconds: Positive = 10.0
    channels_last: Annotated[Any, Choices(("auto", "true", "false"))] = False  # see runtime.channels_last
    compile: Annotated[Any, Choices(("auto", "true", "false"))] = False  # see runtime.compiles, networks.compiled


@dataclass
class Tracking:
    """Where numbers go beside the store, which always has them (ldmlab.reports.mirror)."""

    wandb: Annotated[str, Choices(("offline", "online"))] | None = None
    project: str = "ldmlab"
    entity: str | None = None
    # of first stages, denoisers and samples; metadata: card and configuration, files: weights and images too
    artifacts: Annotated[str, Choices(("none", "metadata", "files"))] = "metadata"
    finish_seconds: Positive = 60.0  # how long a command waits at its end for W&B to take the rest


@dataclass
class Prepare:
    """prepare.py: how pictures are packed."""

    images_per_shard: Annotated[int, Range(at_least=1, at_most=10**7)] = 1000
    format: Annotated[str, Choices(("jpg", "png", "webp"))] = "jpg"
    quality: Annotated[int, Range(at_least=1, at_most=100)] = 95
    licence: str = ""


@dataclass
class Seeds:
    """How often each level of a study's cells is made anew in a sweep (-m); seeds nest (ldmlab.sweeping.cells)."""

    first_stage: Annotated[int, Range(at_least=1, at_most=100)] = 1  # first stages; ae.seed
    denoiser: Annotated[int, Range(at_least=1, at_most=100)] = 1  # denoisers of each first stage; ldm.seed
    sampling: Annotated[int, Range(at_least=1, at_most=100)] = 1  # sets of samples of each denoiser; eval.seed


@dataclass
class Bench:
    """bench.py: how long is measured and, for the comparisons, of what."""

    rounds: Annotated[int, Range(at_least=1, at_most=10_000)] = (
        7  # repetitions that count, contenders in turn; one more warms up
    )
    batch_size: Batch | None = None  # null: the composition's or the shape's own
    seconds: Positive = 60.0  # of work that is counted but not timed when one step would take longer
    shapes: list[str] = field(default_factory=lambda: ["tiny", "f8", "f4"])  # compare=unet
    variants: list[str] = field(default_factory=lambda: ["train", "train_bf16", "ddim", "guided"])  # compare=unet
    family: list[str] = field(default_factory=list)  # compare=family, first_stage, fair: options of ae
    # compare=fair: FLOPs an image, and the words of fair=
    targets: Annotated[list[Positive], Items(at_least=1, distinct=True)] = field(
        default_factory=lambda: [1.4e9, 3e9, 1e10]
    )
    modes: list[str] = field(default_factory=lambda: ["flops", "network", "parameters", "time"])


COMPARISONS = (
    "unet",
    "codebook",
    "autoencoder",
    "family",
    "first_stage",
    "tiles",
    "compression",
    "attention",
    "convolution",
    "kv_cache",
    "fair",
    "paper",
    "large",
)


@dataclass
class RunConfig:
    seed: Seed = 0
    store: Text = "store"
    until: Annotated[str, Choices(STAGES)] = "report"
    dry_run: bool = False
    check: Annotated[str, Choices(("device", "determinism"))] | None = None  # in the place of the run (train.py)
    n: Annotated[int, Range(at_least=1, at_most=10**8)] = 64  # sample.py: how many images
    # of samples, HEIGHTxWIDTH in pixels; null: data.resolution, at which the denoiser was trained
    size: Annotated[str, PictureSize()] | None = None
    large: Large = field(default_factory=Large)
    then: str | None = (
        None  # the samples go through the super-resolution model of this run of the store: its name or id
    )
    out: Text | None = None  # prepare.py, sample.py, export.py: a folder for the files; bench.py: a file of JSON lines
    # export.py: diffusers, compvis; report.py: wandb, the study's report there
    to: Annotated[str, Choices(("diffusers", "compvis", "wandb"))] | None = None
    part: Annotated[str, Choices(("ae", "ldm"))] = "ae"  # export.py: the first stage | the denoiser and all it needs
    verify: bool | None = (
        None  # false: use results that were altered; prepare.py, true: check a data set instead of making one
    )
    runs: str | None = None  # report.py: "all", or a glob over run names
    compare: Annotated[str, Choices(COMPARISONS)] | None = None  # bench.py; null: the composition itself
    mirror: bool = False  # report.py: make or repair the W&B runs of these runs
    study: str | None = None  # report.py: the runs that a sweep has made, by its name in sweeps/
    paper: bool = False  # report.py: the paper's tables beside the runs of experiment=paper/…
    serve: bool = False  # report.py: the store as a local site, which only reads
    port: Annotated[int, Range(at_least=0, at_most=65_535)] = 8_000  # serve=true; 0: any that is free
    seeds: Seeds = field(default_factory=Seeds)  # of a sweep
    parallel: Annotated[Any, AutoOr(Range(at_least=1, at_most=4_096))] = "auto"  # cells of a sweep at once
    submit: bool = False  # with hydra/launcher=submitit_slurm: return once the jobs are in the queue
    status: bool = False  # print what store and scheduler know of the run or of each cell, and start nothing
    cancel: bool = False  # take the jobs of the run or of the cells out of the queue
    data: Node = MISSING
    ae: AE = MISSING
    ldm: LDM = MISSING
    cond: Conditioning = MISSING
    objective: Node = MISSING
    sampler: Node = MISSING
    guidance: dict[str, Any] = field(default_factory=dict)  # kinds by name: GUIDANCE, or parts
    tune: Tune | None = None
    stage: Any = None  # stages from outside the package: {name: part}
    eval: Eval = MISSING
    segmenter: Segmenter = MISSING
    metric: dict[str, Any] = field(default_factory=dict)  # filled: the settings of each of eval.metrics
    latents: Latents = field(default_factory=Latents)
    runtime: Runtime = field(default_factory=Runtime)
    tracking: Tracking = field(default_factory=Tracking)
    prepare: Prepare = field(default_factory=Prepare)
    bench: Bench = field(default_factory=Bench)
    planned: MaybeNode = None  # stands in for the data in a dry run where data.root is not there
    where_present: Any = None  # {path: value}, set where the composition has that path and the command line does not
