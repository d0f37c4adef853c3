"""Imports point one way, nothing heavy is loaded before it is needed, and instantiate is called in one place."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SRC)}


def test_imports_point_one_way_and_in_no_circle() -> None:
    """The contracts in pyproject.toml; a room that no contract names is refused too."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], capture_output=True, text=True, cwd=SRC.parent, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout[done.stdout.find("Contracts") :]
    contracts = tomllib.loads((SRC.parent / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = {name.strip() for layer in contracts[0]["layers"] for name in layer.split("|")}
    rooms = {
        f"ldmlab.{p.stem}" for p in (SRC / "ldmlab").iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()
    }
    assert rooms - {"ldmlab.__init__"} == named


def test_only_build_instantiates() -> None:
    callers = [f.name for f in SRC.rglob("*.py") if re.search(r"hydra\.utils import .*\binstantiate\b", f.read_text())]
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
