#!/usr/bin/env python3
"""Evaluate finished runs: `python evaluate.py --parzen`. `--help` lists every flag."""

import sys

from cmma_jax.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
