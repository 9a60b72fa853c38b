"""The W&B workspace of this project (configs/dashboard/wandb.yaml), and the upload of runs."""
