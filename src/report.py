"""One page of runs that are in the store: plan, curves, reconstructions, samples, scores with intervals and protocol cards.

    python src/report.py                         every run in the store
    python src/report.py runs='shapes-*'         the runs whose names match
    python src/report.py study=first_stages      the runs that `train.py -m sweeps=first_stages` has made
    python src/report.py out=results             write the page there

The page is one HTML file that opens from disk without a network; beside it Markdown, CSV and the figures.
"""

from pathlib import Path

from ldmlab.cli import command
from ldmlab.config.compose import Composed


def report(composed: Composed, words: str) -> None:
    from ldmlab.reports.publish import advice, find_runs, make_report

    cfg = composed.cfg
    store, out = Path(cfg.store), Path(cfg.out) if cfg.out else None
    folders = find_runs(store, cfg.runs, cfg.study)
    page = make_report(folders, out, store, cfg.study)
    for line in advice(folders) if cfg.study else []:
        print(f" {line}")
    print(f" {len(folders)} run{'' if len(folders) == 1 else 's'}\n   page  {page}")


if __name__ == "__main__":
    command(report)
