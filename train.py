#!/usr/bin/env python3
"""Train a model: `python train.py --model=cmma`. `--help` lists every flag."""

import sys

from cmma_jax.cli.train import program

if __name__ == "__main__":
    program(sys.argv[1:])
