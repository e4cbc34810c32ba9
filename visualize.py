"""Draw what the filters of a trained or published network have learned: `python visualize.py --help`."""

from filterscope.cli.main import run_script
from filterscope.cli.visualize import main, visualize

__all__ = ["main", "visualize"]  # `main` is a @hydra.main function, which tab completion looks for in this file

if __name__ == "__main__":
    run_script(main)
