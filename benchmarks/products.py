"""GFLOP/s of XLA's matrix products: a layer's own and the two of its gradient, by the type of factors and result.

    python -m benchmarks.products [--rows 6400] [--inputs 256] [--outputs 1024]

The flags are the package's own (`cmma_jax/__init__.py`), or those of XLA_FLAGS.
"""

import argparse
import os
import sys
import time

import cmma_jax  # noqa: F401  (it sets XLA's flags, before JAX starts)

import jax  # isort: skip
import jax.numpy as jnp  # isort: skip

CALLS = 20


def rate(axes: tuple[int, int], factors: str, result: str, shapes: list[tuple[int, int]], operations: float) -> float:
    """Returns GFLOP/s, the median of CALLS, of a product over these axes."""
    a, b = (jnp.ones(shape, factors) for shape in shapes)
    product = jax.jit(lambda a, b: jax.lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())),
                                                       preferred_element_type=result))
    product(a, b).block_until_ready()
    seconds = []
    for _ in range(CALLS):
        began = time.perf_counter()
        product(a, b).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return operations / sorted(seconds)[CALLS // 2] / 1e9


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, size in (("rows", 6400), ("inputs", 256), ("outputs", 1024)):
        parser.add_argument(f"--{name}", type=int, default=size)
    options = parser.parse_args()
    m, k, n = options.rows, options.inputs, options.outputs
    print(f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, jax {jax.__version__}, load average "
          f"{os.getloadavg()[0]:.1f}, {m}x{k} by {k}x{n}\nXLA_FLAGS={os.environ.get('XLA_FLAGS', '')}\n\n"
          "| GFLOP/s, factors to result | the layer's | gradient of its input | gradient of its kernel |\n"
          "|---|---|---|---|")
    for factors, result in (("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32")):
        rates = [rate(axes, factors, result, shapes, 2 * m * k * n) for axes, shapes in (
            ((1, 0), [(m, k), (k, n)]), ((1, 1), [(m, n), (k, n)]), ((0, 0), [(m, k), (m, n)]))]
        print(f"| {factors} to {result} | " + " | ".join(f"{each:,.0f}" for each in rates) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
