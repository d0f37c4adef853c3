"""What is written down is there: documents, sections and files that the repository cites, and links between its documents."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf

from ldmlab.conditioning.asked import taken
from ldmlab.config.compose import load

ROOT = Path(__file__).resolve().parents[1]
TEXT = {".py", ".yaml", ".yml", ".md", ".toml", ".css", ".j2", ""}
WRITTEN = {"report.md"}  # commands write these beside their results; they are no documents of the repository
ABSENT = re.compile(
    r"\([DG]\d{2}\)|\bgap G\d|\b(?:protocol|architecture|style|field|performance) §|\bstyle \d\.\d|\bldm_paper\.yaml"
)


def texts(*names: str) -> list[Path]:
    """The text files of these folders and files; this file, which spells what it forbids, is left out."""
    found = [
        file for name in names for file in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))
    ]
    return sorted(f for f in found if f.suffix in TEXT and f.is_file() and f != Path(__file__).resolve())


CODE = texts("src", "conf", "sweeps", "tests", "notebooks", "Makefile", "pyproject.toml")
DOCUMENTS = [f for f in texts("README.md", "docs") if f.suffix == ".md"]


def slug(heading: str) -> str:
    """The anchor of a Markdown heading: lower case, letters, digits, hyphens; a space is a hyphen."""
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def anchors(file: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", without_code(file.read_text()), re.M)}


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


def missing(target: str, base: Path) -> bool:
    """Whether `path#anchor`, as seen from the folder `base`, leads nowhere."""
    path, _, anchor = target.partition("#")
    file = (base / path).resolve()
    return not file.exists() or bool(anchor and anchor not in anchors(file))


def test_slug() -> None:
    assert slug("The latent's scale") == "the-latents-scale"
    assert slug("The latent of LDM-32") == "the-latent-of-ldm-32"


def test_code_cites_documents_that_are_there() -> None:
    wrong = []
    for file in CODE:
        text = file.read_text()
        cited = re.findall(r"(?<![\w/.])docs/[\w./-]*\w(?:#[\w-]+)?", text)
        named = re.findall(r"(?<![\w/*.-])\w+\.md\b", text)
        wrong += [f"{relative(file)}: {c}" for c in cited if missing(c, ROOT)]
        wrong += [
            f"{relative(file)}: {n}"
            for n in named
            if n not in WRITTEN and not (ROOT / n).exists() and not (file.parent / n).exists()
        ]
    assert not wrong, wrong


def test_links_between_documents_lead_somewhere() -> None:
    wrong = []
    for file in DOCUMENTS:
        links = re.findall(r"\]\(([^)\s]+)\)", without_code(file.read_text()))
        ours = [link for link in links if not re.match(r"[a-z]+:", link)]
        wrong += [
            f"{relative(file)}: {link}"
            for link in ours
            if missing(file.name + link if link.startswith("#") else link, file.parent)
        ]
    assert not wrong, wrong


def test_nothing_is_cited_by_a_private_code() -> None:
    wrong = [f"{relative(f)}: {code}" for f in CODE + DOCUMENTS for code in ABSENT.findall(f.read_text())]
    assert not wrong, wrong


def commands() -> list[str]:
    """Every `python src/...` line of the README, the guides and gpu.md, continuation lines joined, without comments and prompts."""
    found = []
    for file in [f for f in DOCUMENTS if f.parent == ROOT or f.parent.name == "guide" or f.name == "gpu.md"]:
        for block in re.findall(r"^```\w*\n(.*?)^```", file.read_text(), re.M | re.S):
            lines = re.sub(r"\\\n", " ", block).splitlines()
            found += [re.sub(r"\s{2,}#.*| #.*", "", line).removeprefix("$ ") for line in lines if "python src/" in line]
    return [line for line in dict.fromkeys(found) if "searchpath" not in line and "=noise_above" not in line]


PLACE = {"data": "data=folder data.root=/pictures data.resolution=256", "ldm": "ldm=unet_base", "ae": "ae=kl_f8"}


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_documents_composes(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option of it exists and has a value that can be. `group=…` and `path=…` stand for something else than themselves."""
    monkeypatch.setenv("LDMLAB_SWEEP_CHILD", "1")  # a study's own cells are composed as one of them is
    script, *words = shlex.split(command)[1:]
    words = taken(words)[1] if script == "src/sample.py" else words  # what it reads itself
    placed = ["data=folder"] if script == "src/prepare.py" else []  # as the script has it
    placed += [PLACE[word[:-2]] for word in words if word.endswith("=…") and word[:-2] in PLACE]
    words = [*" ".join(placed).split(), *words]
    launcher = [word.partition("=")[0] for word in words if word.startswith("hydra.launcher.")]
    assert {f"hydra.launcher.{field.name}" for field in fields(SlurmQueueConf)} >= set(launcher)
    words = [word for word in words if not word.startswith(("hydra.launcher.", "hydra/launcher=submitit_slurm"))]
    words = [word for word in words if not re.search(r"…|\$|<\w+>|^-|^[\w.]+=\w+(,\w+)+$", word)]
    choices = load(words).choices
    chosen = dict(word.split("=", 1) for word in words)
    if chosen.get("cond", "").startswith("["):  # several: one name, in the order of the alphabet
        chosen["cond"] = "+".join(sorted(chosen["cond"][1:-1].split(",")))
    assert {group: choices[group] for group in chosen if group in choices} == {
        g: v for g, v in chosen.items() if g in choices
    }


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
