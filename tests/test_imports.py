"""Imports point one way, nothing heavy is loaded before it is needed, and instantiate is called in one place."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
LEAVES = {"errors", "randomness", "ranges"}  # anyone may use them
PARTS = {"data", "networks", "diffusion", "conditioning", "samplers", "guidance", "metrics", "autoencoders"}
MAY_IMPORT = {
    "errors": set(),
    "ranges": set(),
    "randomness": set(),
    "store": set(),
    "config": set(),
    "data": {"store"},
    "networks": set(),
    "diffusion": {"conditioning"},
    "samplers": set(),
    "guidance": {"data", "diffusion", "store"},
    "conditioning": {"data", "networks"},
    "autoencoders": {"networks"},
    "metrics": {"autoencoders", "data", "store"},
    "training": PARTS | {"store"},
    "build": PARTS,
    "interop": PARTS | {"build", "config", "pipeline", "store"},
    "pipeline": PARTS | {"build", "config", "interop", "store", "training"},
    "reports": {"metrics", "pipeline", "store"},
    "cli": {"config", "pipeline"},
    "bench": PARTS | {"build", "config", "interop", "pipeline", "store", "training"},
}


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "ldmlab":
            yield from (f"ldmlab.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_point_one_way() -> None:
    wrong = []
    for file in (SRC / "ldmlab").rglob("*.py"):
        home = file.relative_to(SRC / "ldmlab").parts[0].removesuffix(".py")
        if home == "__init__":
            continue
        for name in imported(file):
            if name.startswith("ldmlab."):
                guest = name.split(".")[1]
                if guest != home and guest not in LEAVES | MAY_IMPORT[home]:
                    wrong.append(f"{file.relative_to(SRC)} imports {name}")
    assert not wrong, wrong


def test_only_build_instantiates() -> None:
    callers = [f.name for f in SRC.rglob("*.py") if "hydra.utils import instantiate" in f.read_text()]
    assert callers == ["build.py"]


def test_no_config_is_read_behind_its_schema() -> None:
    """`.get(key, default)` on a config answers None to a misspelling."""
    wrong = [
        f"{file.relative_to(SRC)}: {line.strip()}"
        for file in SRC.rglob("*.py")
        for line in file.read_text().splitlines()
        if re.search(r"\bcfg(\.\w+)*\.get\((?!\"_)", line) or "hasattr(cfg" in line
    ]
    assert not [w for w in wrong if "cfg.hydra." not in w], wrong  # Hydra's own tree is not ours to type


HEAVY = (
    "transformers",
    "wandb",
    "torchmetrics",
    "torch_fidelity",
    "matplotlib",
    "PIL",
    "torchvision",
    "diffusers",
    "scipy",
    "webdataset",
)


@pytest.mark.parametrize("module", ["ldmlab.pipeline.run", "ldmlab.cli", "ldmlab.reports.publish"])
def test_nothing_heavy_before_it_is_needed(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SRC, check=True)
    assert done.stdout.strip() == "[]"


def test_command_line_words_need_no_torch() -> None:
    """A misspelt group option is said before torch is imported: that is what makes it quick."""
    code = (
        "import sys\nfrom ldmlab.config.compose import load\nfrom ldmlab.errors import ConfigError\n"
        "try: load(['ae=kl_f7'])\nexcept ConfigError: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SRC, check=True)
    assert done.stdout.strip() == "False"
