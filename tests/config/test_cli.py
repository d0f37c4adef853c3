"""Scripts from outside: what is typed comes to a composition, or to one line and exit code 1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldmlab.cli import _check_sweep, _with_defaults, help_text
from ldmlab.config.compose import ROOT, Composed, load
from ldmlab.config.words import SWEEP_CHILD
from ldmlab.errors import ConfigError


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}
    )


@pytest.mark.parametrize(
    "words,said",
    [
        (["src/train.py", "-m"], "no option has several values"),
        (["src/train.py", "-m", "ae=kl_f4"], "for one run leave -m out"),
        (["src/train.py", "-m", "ae=kl_f4,kl_f8", "hydra/launcher=basic"], "hydra/launcher=basic has no effect"),
        (["src/train.py", "-m", "ae=kl_f4,kl_f9"], "ae=kl_f9: no such option"),
        (["src/prepare.py", "out=/no/such/folder", "verify=true"], "/no/such/folder"),
        (["src/prepare.py", "out=/no/such/folder"], "data.root is not set"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_one_line_and_exit_code_1(words: list[str], said: str) -> None:
    done = run(*words)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and said in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_terminal_that_knows_ascii_only_gets_question_marks(tmp_path: Path) -> None:
    done = run("src/train.py", "debug=tiny", "dry_run=true", f"store={tmp_path}", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and " ? " in done.stdout and "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "words,said",
    [
        (["ae/loss/perceptual=squeezenet", "ae.loss.perceptual.weights=/no.pth"], "ae.loss.perceptual.weights=/no.pth: no such file"),
        (["runtime.device=cuda"], "runtime.device=cuda, but torch sees no CUDA device"),
    ],
    ids=["file", "device"],
)  # fmt: skip
def test_a_dry_run_finds_what_the_machine_does_not_have(words: list[str], said: str, tmp_path: Path) -> None:
    import torch

    from ldmlab.pipeline.run import prepare

    if words == ["runtime.device=cuda"] and torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ConfigError) as caught:
        prepare(load(["debug=tiny", "ae=kl_f4", "dry_run=true", f"store={tmp_path}", *words]))
    assert said in str(caught.value)


def test_every_cell_of_a_study_composes_with_an_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWEEP_CHILD, "1")
    assert _check_sweep(["sweeps=compression", "experiment=demo"]) == ["sweeps=compression", "experiment=demo"]
    # what is typed takes the place of the sweep's own list
    assert _check_sweep(["sweeps=compression", "ae=kl_f4,vq_f4"]) == ["sweeps=compression", "ae=kl_f4,vq_f4"]


def test_typed_words_take_the_place_of_a_scripts_own() -> None:
    assert _with_defaults(["eval.at=[1.0]", "seed=3"], ["eval.at=[0.5]"]) == ["seed=3", "eval.at=[0.5]"]
    assert _with_defaults(lambda words: ["data=folder"] if "verify=true" not in words else [], ["verify=true"]) == [
        "verify=true"
    ]


def test_a_job_of_a_sweep_may_repeat_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="seed is given twice"):
        load(["seed=1", "seed=2"])
    monkeypatch.setenv(SWEEP_CHILD, "1")
    assert load(["seed=1", "seed=2"]).cfg.seed == 2


def task(composed: Composed, words: str) -> None:
    """A script."""


def test_help_lists_options_from_outside(tmp_path: Path) -> None:
    (tmp_path / "sampler").mkdir()
    (tmp_path / "sampler" / "wavy.yaml").write_text("steps: 3\n")
    said = help_text(task, ["--help", f"hydra.searchpath=[file://{tmp_path}]"])
    assert "wavy" in said and "ae/regulariser=" in said and "wavy" not in help_text(task, [])
