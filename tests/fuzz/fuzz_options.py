"""Every option of a composition with its declaration, and Hypothesis strategies for values inside and outside of it."""

import typing
from typing import Annotated, Any, Literal, NamedTuple

from hypothesis import strategies as st
from omegaconf import DictConfig, ListConfig

from ldmlab.config.complete import is_given, signature
from ldmlab.config.compose import load
from ldmlab.config.guidance import GUIDANCE
from ldmlab.config.values import dataclass_in, hint_of
from ldmlab.ranges import Choices, Items, OneOrMany, Range, Rising

BASE = ["debug=tiny", "data.resolution=32", "data.train_images=64", "data.val_images=16", "eval.samples=64"]
COMPOSITIONS = [
    [],
    ["ae=identity", "cond=none"],
    ["ae=vq_f4", "ldm=dit_tiny", "objective=v_minsnr"],
    ["ae=kl_f4", "ae/loss/discriminator=patchgan_2", "cond=class_vector", "sampler=heun"],
    ["ae=vq_f4", "ae/regulariser=vq_ema", "objective=edm", "sampler=dpmpp_2m"],
    ["ae=kl_f2", "objective=flow_sd3", "sampler=euler", "guidance=classifier"],
    ["objective=v_ztsnr", "guidance=autoguidance", "sampler=ddpm", "ldm.fit.snapshots=[0.5]", "guidance.auto.snapshot=0.5"],
    ["ae=kl_f4_small", "objective=eps_p2", "sampler=plms"],
]  # fmt: skip
"""Each kind of part at least once."""


class Option(NamedTuple):
    value: Any
    hint: Any


def declared(words: list[str]) -> dict[str, Option]:
    """Path → its value in this composition and the annotation it was declared with; parts and preset tables left out."""
    found: dict[str, Option] = {}

    def walk(node: DictConfig, path: str) -> None:
        takes = signature(node["_target_"], path)[1] if "_target_" in node else {}
        for key in node:
            name, where = str(key), f"{path}.{key!s}".lstrip(".")
            if name.startswith("_") or where in ("where_present", "stage"):
                continue
            value, hint = node[key], takes.get(name) if takes else hint_of(where)
            if isinstance(value, DictConfig):
                walk(value, where)
            elif (
                hint is not None
                and not is_given(hint)
                and dataclass_in(hint) is None
                and hint not in (Any, *GUIDANCE.values())
            ):
                found[where] = Option(list(value) if isinstance(value, ListConfig) else value, hint)

    walk(load(words).cfg, "")
    return {path: option for path, option in found.items() if not _is_part(option.hint)}


def _is_part(hint: Any) -> bool:
    candidates = [hint, *typing.get_args(hint)]
    plain = (int, float, str, bool, list)
    kinds = [c for c in candidates if typing.get_origin(c) in (Annotated, list, Literal) or c in plain]
    return not kinds or "Part" in repr(hint)


# ---- values ---------------------------------------------------------------------------------------------------------------


def text_of(value: Any) -> str:
    """A value as a person types it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(text_of(v) for v in value)}]"
    return repr(value) if isinstance(value, float) else str(value)


def near(option: Option) -> st.SearchStrategy[str]:
    """The value itself and others that its declaration allows, not far from it, so that most compose and train."""
    return st.one_of(st.just(option.value), _near(option.value, option.hint)).map(text_of)


def _near(value: Any, hint: Any) -> st.SearchStrategy[Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        words = [word for rule in args[1:] if isinstance(rule, Choices) for word in rule.words]
        if words:
            return st.sampled_from(words)
        ends = [rule for rule in args[1:] if isinstance(rule, Range)]
        if ends and isinstance(value, (int, float)) and not isinstance(value, bool):
            whole = args[0] is int
            tries = [value, value + 1, value * 2] if whole else [value, value * 0.5, value * 1.5, min(value + 0.1, 1.0)]
            allowed = [t for t in tries if ends[0].refuse(t) is None]
            return st.sampled_from(allowed or [value])
        return st.just(value)
    if origin is Literal:
        return st.sampled_from(args)
    if type(None) in args:
        inner = next(a for a in args if a is not type(None))
        return st.one_of(st.none(), _near(value, inner)) if value is not None else st.none()
    return st.booleans() if hint is bool else st.just(value)


def rules_of(hint: Any) -> list[Any]:
    """Every rule that an annotation holds, those of list items too."""
    own = [arg for arg in typing.get_args(hint) if isinstance(arg, (Range, Choices, Items, Rising, OneOrMany))]
    return own + [rule for arg in typing.get_args(hint) for rule in rules_of(arg)]


HOSTILE = [
    "nan", "inf", "-inf", "-1", "0", "1e300", "1e-300", "1000000000000000", "99999999999999999999", "''", "'é ü (1)'", "null", "[]",
    "[1,1]", "[nan]", "{a:1}", "true", "'a=b'", "~/nope", "${nope}", "${seed}", "${oc.env:HOME}", "???", "x" * 5_000, "[0.1", "'",
    "1,2", "\u202e", "\x00", "0x10", "1_0", "choice(1,2)", "*",
]  # fmt: skip


def hostile(path: str) -> st.SearchStrategy[list[str]]:
    """Words about one option that are mostly wrong."""
    value = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=12).filter(lambda s: "\n" not in s))
    return st.one_of(
        value.map(lambda v: [f"{path}={v}"]),
        st.sampled_from(
            [[f"~{path}"], [f"{path}=1", f"{path}=2"], [f"+{path}.zzz=1"], [f"{path}z=1"], [f"{path} =1"], [f"{path}=${{{path}}}"]]
        ),
    )  # fmt: skip
