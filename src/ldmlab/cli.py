"""From `python src/train.py …` to a function with a completed configuration; and from whatever goes wrong to one line.

Exit codes: 0 done; 1 a mistake, said in one line without a traceback; 85 stopped by a signal with a checkpoint, run the same command
again; anything else is a bug of ours and keeps its traceback.
"""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldmlab.config.compose import CONF, ROOT, Composed, group_options, groups, load, register_schema
from ldmlab.errors import ConfigError, UserError

SWEEP_CHILD = "LDMLAB_SWEEP_CHILD"  # set by the sweep launcher: one job of a sweep, which repeats `sweeps=…` without -m

Task = Callable[[Composed, str], Any]


def command(task: Task, defaults: list[str] | None = None, ranks: bool = False) -> None:
    """Run a script's task and exit. `ranks`: the task can run on several processes (`runtime.processes`)."""
    words = sys.argv[1:]
    sys.exit(_guarded(lambda: _dispatch(task, words, defaults or [], ranks)))


def _dispatch(task: Task, words: list[str], defaults: list[str], ranks: bool) -> int:
    flags = [w for w in words if w.startswith("-")]
    if {"-h", "--help"} & set(flags):
        print(help_text(task))
        return 0
    if {"-m", "--multirun"} & set(flags) or any(f.startswith(("-s", "--shell")) for f in flags):
        return _sweep(words)
    if {"-c", "--cfg"} & set(flags):
        from omegaconf import OmegaConf

        rest = [w for w in words if not w.startswith("-") and w not in ("job", "all")]
        print(OmegaConf.to_yaml(load([*defaults, *rest]).cfg))
        return 0
    if flags:
        raise UserError(
            f"{flags[0]}: no such flag. Flags: --help, --cfg (print the completed configuration), -m (a sweep)."
        )
    composed = load([*defaults, *words])
    from ldmlab.pipeline.launch import start_ranks, under_launcher

    if ranks and composed.cfg.runtime.processes > 1 and not under_launcher() and not composed.cfg.dry_run:
        from ldmlab.pipeline.run import prepare

        prepare(composed)  # every error is printed once, by this process, before a rank starts
        return start_ranks(composed.cfg.runtime.processes, sys.argv)
    task(composed, command_line(words))
    return 0


def _guarded(work: Callable[[], int]) -> int:
    try:
        return work()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
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


def help_text(task: Task) -> str:
    """The script's own words, then every group with its options. Composes nothing, so it is quick."""
    module = sys.modules[task.__module__]
    lines = [
        (module.__doc__ or "").strip(),
        "",
        "Options are words: group=option chooses a file in conf/, path=value sets one option.",
        "",
    ]
    for group in groups():
        names = group_options(group)
        if names:
            lines.append(f"  {group + '=':<13}{', '.join(names)}")
            lines += [
                f"    {sub.relative_to(CONF)!s}={', '.join(group_options(str(sub.relative_to(CONF))))}"
                for sub in sorted((CONF / group).glob("*/"))
            ]
    lines += ["", "--cfg prints the completed configuration with every option. dry_run=true prints the plan and builds nothing.",
              "-m runs a sweep: python src/train.py -m sweeps=compression, or -m ae=kl_f4,kl_f8."]  # fmt: skip
    return "\n".join(lines)


def _sweep(words: list[str]) -> int:
    """Hydra's multirun, with one operating-system process per job (`hydra_plugins.ldmlab_launcher`)."""
    import hydra

    register_schema()
    os.environ[SWEEP_CHILD] = "1"
    _check_sweep([w for w in words if not w.startswith("-")])
    # Hydra's parser wants all options in one piece
    sys.argv[1:] = [*(w for w in words if w.startswith("-")), *(w for w in words if not w.startswith("-"))]

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(cfg: Any) -> None:
        raise UserError("a sweep's jobs run in their own processes; use hydra/launcher=processes.")

    job()
    return 0


def _check_sweep(words: list[str]) -> None:
    """Every value that is swept over, composed once, before Hydra says it in its own words. Raises ConfigError."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException
    from omegaconf import OmegaConf

    files = [ROOT / "sweeps" / f"{w.removeprefix('sweeps=')}.yaml" for w in words if w.startswith("sweeps=")]
    given = [
        f"{path}={values}"
        for file in files
        if file.is_file()
        for path, values in (OmegaConf.select(OmegaConf.load(file), "hydra.sweeper.params") or {}).items()
    ]
    parser = OverridesParser.create()
    values: list[list[str]] = []
    for word in [*given, *words]:
        try:
            parsed = parser.parse_overrides([word])[0]
        except OverrideParseException:
            raise ConfigError(
                f"{word}: not readable as an option. Write path=value, and quote values with commas or spaces."
            ) from None
        path = parsed.get_key_element()
        values.append([f"{path}={v}" for v in parsed.sweep_string_iterator()] if parsed.is_sweep_override() else [word])
    first = [v[0] for v in values]
    for i, choices in enumerate(values):
        for word in choices if len(choices) > 1 else []:
            load([*first[:i], word, *first[i + 1 :]])
    load(first)
