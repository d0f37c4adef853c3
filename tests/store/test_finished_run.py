"""A finished run, once: every kind of file in it is altered in turn, and the same command names it before it uses anything."""

import shutil
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from option_words import replacing

from ldmlab.config.compose import Composed, load
from ldmlab.errors import DataError
from ldmlab.pipeline.plan import Plan
from ldmlab.pipeline.run import execute, prepare, verify
from ldmlab.store.store import Store

pytestmark = pytest.mark.slow

TINY = [
    "debug=tiny", "ae=kl_f4_small", "ae/loss=pixel", "ae.network.width=32", "ae.fit.images=8", "ae.fit.batch_size=4",
    "ae.fit.ema=0.9", "ae.fit.warmup=0", "ae.latent_scale.images=8", "data.resolution=32", "data.train_images=16",
    "data.val_images=8", "ldm.fit.images=16", "ldm.fit.batch_size=8", "ldm.fit.warmup=0", "ldm.fit.snapshots=[0.5]",
    "ldm.power_ema=[0.1]", "sampler.steps=1", "eval.at=[0.5,1.0]", "eval.extractor_fit.images=16",
    "eval.extractor_fit.batch_size=8", "eval.samples=10", "eval.reconstructions=8", "eval.reference.images=10",
    "eval.batch_size=8", "eval.metrics=[fid]",
]  # fmt: skip
KINDS = {
    "autoencoder": {"autoencoder.safetensors", "ema.safetensors", "weights.safetensors", "metrics.jsonl"},
    "extractor": {"weights.safetensors", "scores.json"},
    "reconstructions": {"scores.json", "facts.json", "per_image.npz", "shown.npz", "reconstructions.png"},
    "latents": {"moments-00000.npy", "certificate.npy", "latents.json"},
    "denoiser": {"weights.safetensors", "ema.safetensors", "power_0.1.safetensors",
                 "snapshots/000000000008/ema.safetensors"},
    "samples": {"images.npy", "conditions.json", "grid.png"},
    "reference": {"features.npz"},
    "scores": {"features.npz", "scores.json"},
    "data": {"manifest.json"},
}  # fmt: skip


def composed(store: Path, *words: str) -> Composed:
    return load(replacing([*TINY, f"store={store}"], words))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("finished")
    execute(composed(store), "python src/train.py")
    return store


@pytest.fixture
def copy_of_run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "store"))


def sealed_files(store: Path) -> list[Path]:
    """Every file of every finished stage, its seal included, by path in the store."""
    folders = [seal.parent for seal in store.glob("*/*/done.json")]
    return sorted(
        file.relative_to(store) for folder in folders for file in folder.rglob("*")
        if file.is_file() and not file.name.startswith(".")
    )  # fmt: skip


def test_one_bit_in_any_file_is_named_before_the_run_is_used(copy_of_run: Path) -> None:
    resolved = prepare(composed(copy_of_run)).resolved
    files = sealed_files(copy_of_run)
    inside = {stage: {str(Path(*f.parts[2:])) for f in files if f.parts[0] == stage} for stage in KINDS}
    for stage, kinds in KINDS.items():
        assert kinds | {"config.yaml", "card.json", "done.json"} <= inside[stage], stage
    verify(Plan(resolved, Store(copy_of_run)))
    for file in files:
        path = copy_of_run / file
        content = path.read_bytes()
        for byte in {0, len(content) // 2, len(content) - 1}:
            path.write_bytes(content[:byte] + bytes([content[byte] ^ 1]) + content[byte + 1 :])
            with pytest.raises(DataError) as caught:
                verify(Plan(resolved, Store(copy_of_run)))
            told = str(caught.value)
            assert str(path) in told and "emove" in told and "\n" not in told, told
        path.write_bytes(content)
    verify(Plan(resolved, Store(copy_of_run)))


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("pattern", ["denoiser/*/ema.safetensors", "reference/*/features.npz", "samples/*/images.npy"])
def test_the_same_command_names_it(copy_of_run: Path, pattern: str, dry_run: bool) -> None:
    path = next(copy_of_run.glob(pattern))
    path.write_bytes(path.read_bytes()[:-1] + b"\x55")
    with pytest.raises(DataError, match=f"{path.name} was altered.*verify=false"):
        execute(composed(copy_of_run, f"dry_run={dry_run}"), "python src/train.py")


def test_verify_false_uses_it_under_other_ids_and_the_cards_say_so(copy_of_run: Path) -> None:
    before = {p.parent for p in copy_of_run.glob("*/*/done.json")}
    path = next(copy_of_run.glob("latents/*/moments-00000.npy"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    words = ["verify=false", "until=samples", "eval.at=[1.0]", "ldm.fit.snapshots=[]", "ldm.power_ema=[]"]
    folder = execute(composed(copy_of_run, *words), "python src/train.py")
    assert folder is not None
    made = {p.parent for p in copy_of_run.glob("*/*/done.json")} - before
    assert sorted(p.parent.name for p in made) == ["denoiser", "samples"]
    for stage in made:
        card = yaml.safe_load((stage / "card.json").read_text())
        (altered,) = card["altered_upstream"].items()
        assert altered[0] == f"latents/{path.parent.name}" and list(altered[1]) == ["moments-00000.npy"]
        if stage.parent.name == "denoiser":
            assert card["upstream"]["latents"].startswith(path.parent.name.rpartition("-")[2] + "+")


def test_looking_costs_at_most_two_percent_of_a_finished_command(finished_run: Path) -> None:
    resolved = prepare(composed(finished_run)).resolved
    verify(Plan(resolved, Store(finished_run)))
    plan = Plan(resolved, Store(finished_run))
    began = time.perf_counter()
    verify(plan)
    looking = time.perf_counter() - began
    began = time.perf_counter()
    execute(composed(finished_run), "python src/train.py")  # a whole command takes seconds more to start
    assert looking < 0.02 * (time.perf_counter() - began + 2.0), f"{looking * 1000:.1f} ms"


def test_a_finished_run_prints_its_result_from_a_read_only_store(finished_run: Path, tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("a read-only store that root cannot write needs the right to mount one")
    try:
        store = shutil.copytree(finished_run, place / "store")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        from ldmlab.reports.publish import headline

        folder = execute(composed(store), "python src/train.py")
        assert folder is not None and "FID" in headline(folder) and "PSNR" in headline(folder)
        with pytest.raises(DataError, match="read-only"):
            execute(composed(store, "eval.seed=5"), "python src/train.py")
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
