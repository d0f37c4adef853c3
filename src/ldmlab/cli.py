"""From `python src/train.py …` to a function with a completed configuration; and from whatever goes wrong to one line.

Exit codes: 0 done; 1 a mistake, said in one line without a traceback; 85 stopped by a signal with a checkpoint, run the same command
again; anything else is a bug of ours and keeps its traceback.
"""

import contextlib
import importlib.util
import io
import os
import pkgutil
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ldmlab.config.compose import CONF, ROOT, SWEEP_CHILD, Composed, group_options, groups, load, register_schema, swept
from ldmlab.config.search import SEARCHPATH, subgroups
from ldmlab.config.words import LAUNCHERS, NO_CLUSTER, QUEUE_WORDS, SLURM, read
from ldmlab.errors import ConfigError, UserError

Task = Callable[[Composed, str], Any]
Defaults = Callable[[list[str]], list[str]]
Change = Callable[[Composed], Composed]


def command(
    task: Task,
    defaults: list[str] | Defaults | None = None,
    ranks: bool = False,
    change: Change | None = None,
    own: Callable[[list[str]], tuple[Change, list[str]]] | None = None,
) -> None:
    """Run a script's task and exit.

    defaults: the script's own words, which typed ones take the place of; a function gets the typed words.
    ranks: the task can run on several processes (`runtime.processes`).
    change: what the script makes of the composition (`with_values`), which is read-only afterwards.
    own: for a script that reads some words itself, as they are typed: (words) → (its `change`, the words that Hydra reads).
    """
    words = sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # PYTHONIOENCODING=ascii: a sign that cannot be written is a question mark
            stream.reconfigure(errors="replace")
    from ldmlab.pipeline.launch import end_with_parent

    end_with_parent()
    if own is None:
        own = lambda words: (change or (lambda composed: composed), words)  # noqa: E731
    sys.exit(_guarded(lambda: _dispatch(task, words, defaults or [], ranks, own)))


def _dispatch(
    task: Task,
    typed: list[str],
    defaults: list[str] | Defaults,
    ranks: bool,
    own: Callable[[list[str]], tuple[Change, list[str]]],
) -> int:
    if {"-h", "--help"} & set(typed):
        print(help_text(task, typed))
        return 0
    change, words = own(typed)
    flags = [w for w in words if w.startswith("-")]
    if {"-m", "--multirun"} & set(flags) and words != typed:
        word = next(word for word in typed if word not in words)
        raise UserError(f"{word} is asked of one run, and -m runs several. Leave one of the two out.")
    if {"-m", "--multirun"} & set(flags):
        return _sweep(words)
    if ranks and f"hydra/launcher={SLURM}" in words and not flags:
        load([w for w in words if not w.startswith(("hydra/launcher", "hydra.launcher"))])  # one run, and no sweep
        return _sweep(["-m", *words], single=True)
    if {"-c", "--cfg"} & set(flags):
        from omegaconf import OmegaConf

        rest = [w for w in words if not w.startswith("-") and w not in ("job", "all")]
        print(OmegaConf.to_yaml(change(load(_with_defaults(defaults, rest))).cfg))
        return 0
    if flags:
        raise UserError(
            f"{flags[0]}: no such flag. Flags: --help, --cfg (print the completed configuration), -m (a sweep)."
        )
    composed = change(load(_with_defaults(defaults, words)))
    if asked := [word for word in QUEUE_WORDS if composed.cfg[word] and not ranks]:
        raise ConfigError(
            f"{asked[0]}=true speaks of runs: type it after the words of train.py, score.py or sample.py."
        )
    if composed.cfg.status or composed.cfg.cancel:
        return _sweep(["-m", *words], single=True)
    if composed.cfg.submit:
        raise ConfigError(NO_CLUSTER)
    from ldmlab.pipeline.launch import start_ranks, under_launcher

    if ranks and composed.cfg.runtime.processes > 1 and not under_launcher() and not composed.cfg.dry_run:
        from ldmlab.pipeline.run import prepare

        prepare(composed)  # every error is printed once, by this process, before a rank starts
        return start_ranks(composed.cfg.runtime.processes, sys.argv)
    task(composed, command_line(typed))
    return 0


def _with_defaults(defaults: list[str] | Defaults, words: list[str]) -> list[str]:
    own = defaults(words) if callable(defaults) else defaults
    typed = {word.partition("=")[0] for word in words}
    return [*(word for word in own if word.partition("=")[0] not in typed), *words]


def _guarded(work: Callable[[], int]) -> int:
    try:
        return work()
    except UserError as error:
        # one line a command; one a node where ranks are missing, since rank 0 may be among them
        everywhere = type(error).__name__ == "MissingRanks"
        if os.environ.get("LOCAL_RANK" if everywhere else "RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe (`| head`) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if (
            type(error).__name__ == "Stopped"
        ):  # ldmlab.training.loop; not imported here, it would cost every --help a torch
            print(f"stopped: {error}. Run the same command again to go on.", file=sys.stderr)
            return 85
        if type(error).__name__ == "OutOfMemoryError":
            print(
                f"error: out of GPU memory. Set runtime.micro_batch to a smaller number (no result changes). {error}",
                file=sys.stderr,
            )
            return 1
        raise


def command_line(words: list[str]) -> str:
    """The command as typed, to print and to keep."""
    script = Path(sys.argv[0]).resolve()
    shown = script.relative_to(ROOT) if script.is_relative_to(ROOT) else script
    return shlex.join(["python", str(shown), *words])


def help_text(task: Task, words: list[str]) -> str:
    """The script's own words, then every group with its options, those of `hydra.searchpath` too. Composes nothing, so it is quick."""
    module = sys.modules[task.__module__]
    lines = [
        (module.__doc__ or "").strip(),
        "",
        "Options are words: group=option chooses a file in conf/, path=value sets one option.",
        "",
    ]
    paths = [word for word in words if word.startswith(f"{SEARCHPATH}=")]
    for group in groups(paths):
        names = group_options(group, paths)
        if names:
            lines.append(f"  {group + '=':<13}{', '.join(names)}")
            lines += [f"    {sub}={', '.join(group_options(sub, paths))}" for sub in subgroups(group, paths)]
    lines += ["", "--cfg prints the completed configuration with every option. dry_run=true prints the plan and builds nothing.",
              "-m runs a sweep: python src/train.py -m sweeps=compression, or -m ae=kl_f4,kl_f8."]  # fmt: skip
    return "\n".join(lines)


def _sweep(words: list[str], single: bool = False) -> int:
    """Hydra's multirun, with one operating-system process or one job of a cluster per cell (`hydra_plugins.ldmlab_launcher`).

    single: of one run.
    """
    import hydra

    register_schema()
    with _environment(SWEEP_CHILD, "1"):
        texts = _check_sweep([w for w in words if not w.startswith("-")], single)
        if f"hydra/launcher={SLURM}" in texts:
            texts += [f"hydra.launcher._target_={_slurm_launcher()}", f"hydra.job.name={Path(sys.argv[0]).stem}"]
        # Hydra's parser wants all options in one piece
        sys.argv[1:] = [*(w for w in words if w.startswith("-")), *texts]

        @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
        def job(cfg: Any) -> None:
            raise UserError(
                f"a sweep's jobs run in their own processes; use hydra/launcher=processes, or hydra/launcher={SLURM} on a cluster."
            )

        job()
    return 0


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """A variable of the environment, for this block and the processes started in it."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _slurm_launcher() -> str:
    """Our launcher, which takes the plugin's options. Raises UserError where the extra or Slurm is missing."""
    if importlib.util.find_spec("submitit") is None or "hydra_submitit_launcher" not in _plugins():
        raise UserError(f"hydra/launcher={SLURM} needs the extra slurm: pip install 'ldmlab[slurm]'.")
    if shutil.which("sbatch") is None:
        raise UserError(
            f"hydra/launcher={SLURM}: sbatch is not on this machine. Type the command on one of the cluster's own."
        )
    return "hydra_plugins.ldmlab_launcher.slurm.SlurmCells"


def _plugins() -> set[str]:
    import hydra_plugins

    return {module.name for module in pkgutil.iter_modules(hydra_plugins.__path__)}


def _check_sweep(words: list[str], single: bool = False) -> list[str]:
    """Compose every value that is swept over once, before Hydra complains in its own words; returns the words as Hydra reads them.

    Raises ConfigError.
    """
    named = any(word.startswith("sweeps=") for word in words)
    typed = [word.values[0] for word in read(words, sweep=True) if not word.path.startswith(LAUNCHERS)]
    given = [f"{path}={values}" for path, values in swept(typed).items()] if named else []
    values = [word.values for word in read([*given, *words], sweep=True) if not word.path.startswith(LAUNCHERS)]
    if not single and not given and not named and all(len(v) == 1 for v in values) and not _several_seeds(words):
        raise ConfigError(
            "-m runs a sweep, and no option has several values. Write python src/train.py -m sweeps=compression, or "
            "-m ae=kl_f4,kl_f8; for one run leave -m out."
        )
    first = [v[0] for v in values]
    for i, choices in enumerate(values):
        for word in choices if len(choices) > 1 else []:
            load([*first[:i], word, *first[i + 1 :]])
    load(first)
    return [word.text for word in read(words, sweep=True)]


def _several_seeds(words: list[str]) -> bool:
    return any(word.path.startswith("seeds") for word in read(words, sweep=True))
