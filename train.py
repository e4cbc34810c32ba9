"""Finetune a CNN and see, epoch by epoch, what its filters learn: `python train.py --help`."""

from filterscope.cli.main import run_script
from filterscope.cli.train import main, train

__all__ = ["main", "train"]  # `main` is a @hydra.main function, which tab completion looks for in this file

if __name__ == "__main__":
    run_script(main)
