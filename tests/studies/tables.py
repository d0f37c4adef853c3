"""Tables of cells drawn from the model of `ldmlab.studies.components`, with known truth."""

import numpy as np

from ldmlab.studies.cells import Arm, Cell, CellTable, Point

R = 100  # resamples of the images


def drawn(
    rng: np.random.Generator,
    truth: dict[int, float],
    seeds: tuple[int, int, int] = (2, 2, 1),
    first: float = 0.08,
    denoiser: float = 0.10,
    images: float = 0.03,
    shared: float = 0.5,
    families: tuple[str, ...] = ("kl",),
    shares: dict[float, dict[int, float]] | None = None,
) -> CellTable:
    """truth: ln FID by f; f = 1 is pixels, whose first stage has no seed. first, denoiser, images: standard deviations.
    shared: of the images' variance between cells of one sampling seed. shares: what each snapshot adds to ln FID by f.
    """
    cells, noise = [], {k: rng.standard_normal(R + 1) for k in range(seeds[2])}
    for family in families:
        for f, mean in truth.items():
            if f == 1 and family != families[0]:
                continue
            arm = Arm(f"{family}_f{f}", "pixels" if f == 1 else family, f, 3)
            for a in range(1 if f == 1 else seeds[0]):
                effect = first * rng.standard_normal() if f > 1 else 0.0
                for d in range(seeds[1]):
                    trained = mean + effect + denoiser * rng.standard_normal()
                    for s in range(seeds[2]):
                        e = images * (shared**0.5 * noise[s] + (1 - shared) ** 0.5 * rng.standard_normal(R + 1))
                        points = tuple(
                            point(share, trained + more.get(f, 0.0), e) for share, more in (shares or {1.0: {}}).items()
                        )
                        cells.append(Cell(arm, a, d, s, f > 1, points, 600.0, 1e13, 1000, 20.0 * 2 / f))
    return CellTable(tuple(cells))


def point(share: float, y: float, e: np.ndarray) -> Point:
    """e: the images' error of ln FID, then its replicates."""
    fid = float(np.exp(y + e[0]))
    spread = float(np.std(e[1:]))
    return Point(
        share,
        round(share * 48_000),
        fid,
        fid * np.exp(-2 * spread),
        fid * np.exp(2 * spread),
        tuple(fid * np.exp(e[1:])),
    )
