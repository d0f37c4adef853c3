"""Weights & Biases as a mirror of the store: a run of ours is a run there, a study is a report. The store stays the only source.

payload         records of the store → what a tracker is told, as plain data
offline         payload → wandb's offline folder
upload          what W&B has of a run; the folder's way there by `wandb sync`
follow          the process beside a training that does both while the store's logs grow
specification   a study's page → the blocks of a report, as plain data
report          these blocks → a W&B report, through wandb-workspaces
command         `report.py mirror=true` and `to=wandb`
"""
