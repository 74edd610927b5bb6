"""Trains a model on selections of datasets, as `clip-train fit` does. Run it with torchrun for several processes.

uv run pipelines/train.py my_run.toml --optim.lr 1e-3
"""

import sys

from clip_train.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "fit")
    main()
