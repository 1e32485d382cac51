"""Conditional probabilistic PCA: a CMMA without its non-linearities, solved exactly, where training starts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cmma_jax.data.dataset import Faces, pixels
from cmma_jax.models.model import Params, encode_attributes
from cmma_jax.models.spec import Spec


class ConditionalPPCA(NamedTuple):
    """z = a C + u, u ~ N(0, I); scaled face = z W + noise of variance sigma2, where W W^T is diagonal.

    Attributes:
      attributes_to_z: C, [2A, J], from encoded attributes, a hole counting as the attribute's mean.
      z_to_x: W, [J, D], orthogonal rows.
      sigma2: variance of the noise, of scaled pixels.
    """

    attributes_to_z: jax.Array
    z_to_x: jax.Array
    sigma2: jax.Array


def fit_conditional_ppca(faces: Faces, spec: Spec, components: int, ridge: float = 10.0) -> ConditionalPPCA:
    """Fits the model: ridge regression of faces on attributes, then PPCA of what is left (Tipping and Bishop 1999).

    The J principal axes come from subspace iteration (Halko, Martinsson and Tropp 2011). The part of the
    regression that lies outside their span is left out, as z is the only way from attributes to the face.
    """
    x = np.asarray(_scaled(faces.x, spec))
    a = np.asarray(encode_attributes(jnp.asarray(faces.y), jnp.asarray(faces.mask), spec.kind))
    count = len(spec.attributes)
    known = a[:, count:]
    mean = (a[:, :count] * known).sum(0) / np.maximum(known.sum(0), 1)
    centred = known * (a[:, :count] - mean)
    slopes = np.linalg.solve(centred.T @ centred + ridge * np.eye(count, dtype=np.float32), centred.T @ x)
    residuals = jnp.asarray(x - centred @ slopes)
    axes, variances = principal_axes(residuals, components)
    left_over = jnp.square(residuals).sum() / len(x) - variances.sum()
    sigma2 = left_over / (residuals.shape[1] - components)
    scale = jnp.sqrt(jnp.maximum(variances - sigma2, 1e-6))
    to_z = (jnp.asarray(slopes) @ axes.T) / scale[None]
    # a = [values, mask] and centred = values - mask * mean: one matrix from a serves both.
    return ConditionalPPCA(jnp.concatenate([to_z, -jnp.asarray(mean)[:, None] * to_z]), scale[:, None] * axes, sigma2)


def start_from_ppca(params: Params, ppca: ConditionalPPCA) -> Params:
    """Returns a CMMA's, CVAE's or VAE's fresh parameters with its linear paths set to a conditional PPCA.

    The heads of the other paths are zero at the start, so the model is then exactly the linear one, with the
    linear one's exact posterior, and what the networks learn is what lies beyond it. A CMMA's latent is z = a C + u,
    a CVAE's is u alone; a VAE wants a PPCA that was fitted with every attribute unknown.
    """
    to_z, w, sigma2 = ppca
    posterior_variance = sigma2 / (jnp.square(w).sum(1) + sigma2)  # [J]; diagonal because the rows are orthogonal
    from_x = w.T * (posterior_variance / sigma2)[None]
    h, g = params["h"], params["g"]
    channels = g["heads"]["bias"].shape[0] // 2
    g = g | {"linear": {"kernel": w},
             "heads": g["heads"] | {"bias": g["heads"]["bias"].at[channels:].set(jnp.log(sigma2))}}
    h = h | {"logvar": h["logvar"] | {"bias": jnp.log(posterior_variance)}}
    if "f" in params:
        from_a = to_z * posterior_variance[None]
        params = params | {"f": params["f"] | {"linear": {"kernel": to_z}}}
    elif "linear_attributes" in g:
        from_a = to_z * (posterior_variance - 1)[None]
        g = g | {"linear_attributes": {"kernel": to_z}}
    else:
        from_a = to_z[:0]
    return params | {"h": h | {"linear": {"kernel": jnp.concatenate([from_x, from_a])}}, "g": g}


def _scaled(x: np.ndarray, spec: Spec) -> jax.Array:
    return ((pixels(jnp.asarray(x)) - spec.mean_face[None]) / spec.pixel_std).reshape(len(x), -1)


@jax.jit(static_argnums=1)
def principal_axes(x: jax.Array, components: int) -> tuple[jax.Array, jax.Array]:
    """x: [N, D], centred -> ([J, D] orthonormal rows, [J] variances), largest first."""
    size = min(components + 100, *x.shape)
    q = jnp.linalg.qr(x.T @ jax.random.normal(jax.random.key(0), (len(x), size)))[0]
    q = jax.lax.fori_loop(0, 6, lambda _, q: jnp.linalg.qr(x.T @ (x @ q))[0], q)
    _, deviations, axes = jnp.linalg.svd(x @ q, full_matrices=False)
    return (axes @ q.T)[:components], jnp.square(deviations[:components]) / len(x)
