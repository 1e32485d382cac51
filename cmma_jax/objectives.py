"""The variational bound: pure, per-example terms, no reduction inside."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cmma_jax.distributions import kl, split_each, standard_uniform, sum_event
from cmma_jax.models import Model, Params


class Terms(NamedTuple):
    """The terms of Eq. 6 and the paper's joint term, an example each, in nats.

    Attributes:
      reconstruction: [B] log p(x|z) at one sample z ~ q(z|x, y) (Eqs. 8 and 11).
      kl_latents: [B, J] KL[q(z|x, y) || p(z|y)] of each latent (Eq. 7).
      attributes: [B] log q(y|z) of the known attributes at that z; trains q(y|z) alone.
      attributes_prior: [B] the same at one z ~ p(z|y): the paper's stand-in for log p(y) (end of 2.1).
    """

    reconstruction: jax.Array
    kl_latents: jax.Array
    attributes: jax.Array
    attributes_prior: jax.Array

    @property
    def kl(self) -> jax.Array:
        """[B], the KL summed over the latents."""
        return self.kl_latents.sum(-1)

    @property
    def bound(self) -> jax.Array:
        """[B], the variational bound on log p(x|y) (Eq. 6); the attribute terms are no part of it."""
        return self.reconstruction - self.kl


def elbo(model: Model, params: Params, key: jax.Array, x: jax.Array, y: jax.Array, mask: jax.Array,
         known: jax.Array | None = None) -> Terms:
    """Returns the terms of the bound log p(x|y) >= E_q(z|x,y) log p(x|z) - KL[q(z|x,y) || p(z|y)] (Eq. 6).

    Args:
      model: a CMMA or one of its kin.
      params: its parameters.
      key: one key, or [B] keys, one an example.
      x: [B, H, W, 3] faces in [0, 1].
      y: [B, A] attributes.
      mask: [B, A] bool, the attributes that the networks see.
      known: [B, A] bool, the attributes on which log q(y|z) is scored; `mask` if not given. Training
        hides some known attributes from the networks, and q(y|z) learns to tell them.
    """
    known = mask if known is None else known
    posterior_key, prior_key = split_each(key, 2)
    q, p = model.posterior(params, x, y, mask), model.prior(params, y, mask)
    z = q.sample(posterior_key)
    reconstruction = sum_event(model.likelihood(params, z, y, mask).log_prob(x))

    def attribute_term(z: jax.Array, scored: jax.Array) -> jax.Array:
        return jnp.where(scored, model.attributes(params, z).log_prob(y), 0).sum(-1)

    return Terms(reconstruction, kl(q, p), attribute_term(jax.lax.stop_gradient(z), known),
                 attribute_term(p.sample(prior_key), mask))


def summary(terms: Terms) -> dict[str, jax.Array]:
    """Returns the figures that are recorded, [B] each, in nats."""
    return {"bound": terms.bound, "reconstruction": terms.reconstruction, "kl": terms.kl,
            "attributes": terms.attributes, "attributes_prior": terms.attributes_prior}


def hide_attributes(key: jax.Array, mask: jax.Array, rate: float) -> jax.Array:
    """Returns a mask with attributes hidden from a fraction `rate` of the examples.

    Half of those lose every attribute, which trains q(z|x) and p(z); the others keep each attribute with a
    probability that is itself drawn from U(0, 1), which trains every degree of knowledge between.

    Args:
      key: one key, or [B] keys.
      mask: [B, A] bool.
      rate: in [0, 1]; 0 hides nothing.
    """
    which_key, keep_key, each_key = split_each(key, 3)
    hidden = standard_uniform(which_key, (len(mask), 1)) < rate
    keep = jnp.maximum(2 * standard_uniform(keep_key, (len(mask), 1)) - 1, 0)
    return mask & (~hidden | (standard_uniform(each_key, mask.shape) < keep))


def make_loss(model: Model, attribute_dropout: float, attribute_weight: float):
    """Returns loss(params, key, x, y, mask) -> ([B] loss, dict of [B] terms), what training minimises.

    The loss is -(bound + attribute_weight * attribute terms) / D, D the number of pixel values: of the order
    of 1, so that gradients can be clipped at a norm that does not depend on the size of the face.
    """

    def loss(params: Params, key: jax.Array, x: jax.Array, y: jax.Array, mask: jax.Array):
        bound_key, hide_key = split_each(key, 2)
        seen = hide_attributes(hide_key, mask, attribute_dropout)
        terms = elbo(model, params, bound_key, x, y, seen, known=mask)
        gain = terms.bound + attribute_weight * (terms.attributes + terms.attributes_prior)
        return -gain / x[0].size, summary(terms)

    return loss
