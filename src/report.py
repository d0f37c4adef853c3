"""One page of runs that are in the store: plan, curves, reconstructions, samples, scores with intervals and protocol cards.

    python src/report.py                         every run in the store
    python src/report.py runs='shapes-*'         the runs whose names match
    python src/report.py study=first_stages      the runs that `train.py -m sweeps=first_stages` has made
    python src/report.py out=results             write the page there
    python src/report.py paper=true              the paper's tables beside the runs of experiment=paper/…: paper | ours | equal?
    python src/report.py serve=true              the whole store as a site on 127.0.0.1, with live curves; port=8000
    python src/report.py mirror=true runs='…-*'  make or repair their W&B runs from the store (tracking.project=…; WANDB_MODE=offline)
    python src/report.py study=… to=wandb        the study as a W&B report, at one URL; dry_run=true writes its specification

The page is one HTML file that opens from disk without a network; beside it Markdown, CSV, the figures, and pages to explore.
"""

from pathlib import Path

from ldmlab.cli import command
from ldmlab.config.compose import Composed


def report(composed: Composed, words: str) -> None:
    cfg = composed.cfg
    if cfg.serve:
        from ldmlab.reports.serve import serve

        return serve(Path(cfg.store), cfg.port)
    if cfg.paper:
        from ldmlab.reports import paper_table

        return print(paper_table.text(Path(cfg.store)))
    from ldmlab.reports.explore import ABSENT, available
    from ldmlab.reports.mirror import command as wandb_command
    from ldmlab.reports.publish import advice, find_runs, make_report

    if wandb_command.wanted(cfg):
        return print(wandb_command.write(cfg, find_runs(Path(cfg.store), cfg.runs, cfg.study)))
    store, out = Path(cfg.store), Path(cfg.out) if cfg.out else None
    folders = find_runs(store, cfg.runs, cfg.study)
    page = make_report(folders, out, store, cfg.study)
    for line in advice(folders) if cfg.study else []:
        print(f" {line}")
    print(f" {len(folders)} run{'' if len(folders) == 1 else 's'}\n   page  {page}")
    if not available():
        print(f"   note: {ABSENT}")


if __name__ == "__main__":
    command(report)
