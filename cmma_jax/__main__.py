"""`python -m cmma_jax COMMAND`, the same as `cmma COMMAND`."""

from cmma_jax.cli.main import program

if __name__ == "__main__":
    program()
