"""The variational bound, the importance-weighted bound and a CGAN's losses: pure, per-example terms."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cmma_jax.models import detail
from cmma_jax.models.distributions import fold_each, kl, split_each, standard_normal, standard_uniform, sum_event
from cmma_jax.models.flow import STEPS, log_prior, matching
from cmma_jax.models.model import Model, Params
from cmma_jax.models.networks import GROUP


class Terms(NamedTuple):
    """The terms of Eq. 6 and the paper's joint term, an example each, in nats."""

    reconstruction: jax.Array  # [B] log p(x|z) at one sample z ~ q(z|x, y) (Eqs. 8 and 11)
    kl: jax.Array  # [B] KL[q(z|x, y) || p(z|y)] (Eq. 7); where the prior is a flow, an unbiased estimate at that z
    attributes: jax.Array  # [B] log q(y|z) of the known attributes at that z; trains q(y|z) alone
    attributes_prior: jax.Array  # [B] that at one z of a Gaussian prior: the paper's stand-in for log p(y) (2.1); or 0

    @property
    def bound(self) -> jax.Array:
        """[B], the variational bound on log p(x|y) (Eq. 6); the attribute terms are no part of it."""
        return self.reconstruction - self.kl


def elbo(model: Model, params: Params, key: jax.Array, x: jax.Array, y: jax.Array, mask: jax.Array,
         known: jax.Array | None = None, steps: int = STEPS) -> Terms:
    """Returns the terms of the bound log p(x|y) >= E_q(z|x,y) log p(x|z) - KL[q(z|x,y) || p(z|y)] (Eq. 6).

    Where p(x|z) is a discretised mixture it is that on log P(x|y) + D ln 255, the density whose integral over a
    value's interval is its probability.

    Args:
      model: a CMMA or one of its kin.
      params: its parameters.
      key: one key, or [B] keys, one an example.
      x: [B, H, W, 3] faces in [0, 1].
      y: [B, A] attributes.
      mask: [B, A] bool, the attributes that the networks see.
      known: [B, A] bool, the attributes on which log q(y|z) is scored; `mask` if not given. Training
        hides some known attributes from the networks, and q(y|z) learns to tell them.
      steps: of a flow's solver.
    """
    known = mask if known is None else known
    posterior_key, prior_key, trace_key = split_each(key, 3)
    q = model.posterior(params, x, y, mask)
    z = q.sample(posterior_key)
    reconstruction = log_likelihood(model, params, x, z, y, mask)

    zeros = jnp.zeros(len(x))

    def attribute_term(z: jax.Array, scored: jax.Array) -> jax.Array:
        if model.attributes is None:
            return zeros
        return jnp.where(scored, model.attributes(params, z).log_prob(y), 0).sum(-1)

    if model.velocity is None:
        p = model.prior(params, y, mask)
        divergence, of_prior = sum_event(kl(q, p)), attribute_term(p.sample(prior_key), mask)
    else:
        divergence, of_prior = -sum_event(q.entropy) - log_prior(model, params, z, y, mask, trace_key, steps), zeros
    return Terms(reconstruction, divergence, attribute_term(jax.lax.stop_gradient(z), known), of_prior)


def log_likelihood(model: Model, params: Params, x: jax.Array, z: jax.Array, y: jax.Array, mask: jax.Array
                   ) -> jax.Array:
    """Returns [B] log p(x|z) in nats."""
    if model.detail is not None:
        return detail.log_prob(model, params, x, z, y, mask)
    return sum_event(model.likelihood(params, z, y, mask).log_prob(x))


def hide_attributes(key: jax.Array, mask: jax.Array, wholly: float, partly: float) -> jax.Array:
    """Returns a mask with attributes hidden from some of the examples.

    A fraction `wholly` loses every attribute, which trains q(z|x) and p(z); a fraction `partly` keeps each attribute
    with a probability that is itself the cube of a draw from U(0, 1), which trains every degree of knowledge between,
    and few known attributes of many, as a person names them, most.

    Args:
      key: one key, or [B] keys.
      mask: [B, A] bool.
      wholly, partly: their sum in [0, 1]; 0 and 0 hide nothing.
    """
    which_key, keep_key, each_key = split_each(key, 3)
    which = standard_uniform(which_key, (len(mask), 1))
    kept = standard_uniform(keep_key, which.shape) ** 3
    rate = jnp.where(which < wholly, 0, jnp.where(which < wholly + partly, kept, 1))
    return mask & (standard_uniform(each_key, mask.shape) < rate)


def importance_weighted_bound(model: Model, params: Params, key: jax.Array, x: jax.Array, y: jax.Array,
                              mask: jax.Array, samples: int) -> jax.Array:
    """Returns log 1/K sum_k p(x|z_k) p(z_k|y) / q(z_k|x, y), z_k ~ q(z|x, y): [B] nats.

    Its expectation rises with K = `samples` from the variational bound, K = 1, towards log p(x|y) (Burda, Grosse
    and Salakhutdinov 2016), for a Gaussian prior: a flow's density has noise, which inside the log would be a bias. One
    sample is in memory at a time. Arguments as for `elbo`.
    """
    q, p = model.posterior(params, x, y, mask), model.prior(params, y, mask)

    def add(total: jax.Array, k: jax.Array) -> tuple[jax.Array, None]:
        z = q.sample(fold_each(key, k))
        log_weight = (log_likelihood(model, params, x, z, y, mask)
                      + sum_event(p.log_prob(z)) - sum_event(q.log_prob(z)))
        return jnp.logaddexp(total, log_weight), None

    total, _ = jax.lax.scan(add, jnp.full(len(x), -jnp.inf), jnp.arange(samples))
    return total - jnp.log(samples)


PENALTY_SHIFT = 0.1  # pixel deviations
# Of `augment`: how much brighter, at most; a shift, at most, and a hole, each way, as parts of a side.
BRIGHTER, SHIFTED, CUT = 0.25, 8, 4


class GanTerms(NamedTuple):
    """What a CGAN's two players pay, an example each, in nats, and how the discriminator fares.

    The discriminator pays, where asked for, -w log(1 - D(x, y')) too, y' the attributes of another real face (Reed et
    al. 2016). The penalty is taken at a random v ~ N(0, I), e small: the squared gradient of D at real faces but for
    terms in e, in units of `pixel_deviation` (Mescheder, Geiger and Nowozin 2018, without their second derivatives).
    """

    generator: jax.Array  # [B] -log D(G(u, y), y), non-saturating (Goodfellow et al. 2014); no gradient for D
    discriminator: jax.Array  # [B] -log D(x, y) - log(1 - D(G(u, y), y)); no gradient for G
    penalty: jax.Array  # [B] ((D(x + e v, y) - D(x, y)) / e)^2; no gradient for G
    accuracy: jax.Array  # [B] the share of the two, real and made, that D tells rightly


def adversarial(model: Model, params: Params, key: jax.Array, x: jax.Array, y: jax.Array, mask: jax.Array,
                dropout: float, pixel_deviation: float, wrong_attributes: float = 0.0, augmented: bool = False
                ) -> GanTerms:
    """Returns a CGAN's losses; both players move at once, each by its own loss.

    Args:
      model, params, key, x: as for `elbo`; x are real faces.
      y, mask: [B, A] their attributes, which are also the attributes asked of the generator: draws from the data.
      dropout: fraction of the pixel values that the discriminator does not see, other ones of each group of faces.
      pixel_deviation: the data's, by which the discriminator's network divides.
      wrong_attributes: weight w of real faces with the attributes of another of their group.
      augmented: whether the discriminator sees every face by `augment`.
    """
    noise_key, real_key, fake_key, shift_key = split_each(key, 4)
    fixed = jax.lax.stop_gradient(params)
    noise = model.prior(params, y, mask).sample(noise_key)
    made = model.likelihood(params, noise, y, mask).mean

    def logit(params: Params, key: jax.Array, x: jax.Array, y: jax.Array = y, mask: jax.Array = mask) -> jax.Array:
        x = augment(key, x) if augmented else x
        seen = standard_uniform(key, x.shape) >= dropout if dropout else jnp.ones_like(x, bool)
        seen = jnp.repeat(seen[::GROUP], GROUP, 0)  # else the faces of a group differ by what is hidden of them
        return model.discriminator(params, x, y, mask, seen)

    real, unreal = logit(params, real_key, x), logit(params, fake_key, jax.lax.stop_gradient(made))
    shift = PENALTY_SHIFT * pixel_deviation * standard_normal(shift_key, x.shape)
    penalty = jnp.square((logit(params, real_key, x + shift) - real) / PENALTY_SHIFT)
    loss = jax.nn.softplus(-real) + jax.nn.softplus(unreal)
    if wrong_attributes:
        others = (jnp.roll(a.reshape(-1, GROUP, a.shape[1]), 1, 1).reshape(a.shape) for a in (y, mask))
        loss += wrong_attributes * jax.nn.softplus(logit(params, real_key, x, *others))
    accuracy = 0.5 * ((real > 0).astype(x.dtype) + (unreal < 0))
    return GanTerms(jax.nn.softplus(-logit(fixed, fake_key, made)), loss, penalty, accuracy)


def augment(key: jax.Array, x: jax.Array) -> jax.Array:
    """Returns faces [B, H, W, 3] brighter or darker, more or less coloured and contrasted, shifted, and with a hole.

    Where a discriminator sees both real and made faces so, it cannot learn real ones by heart, and the generator does
    not learn to make such faces (differentiable augmentation, Zhao et al. 2020). The faces of a group, which are
    compared, are changed alike. key: [B] keys.
    """
    height, width = x.shape[1:3]
    drawn = jnp.repeat(standard_uniform(key, (len(x), 7))[::GROUP], GROUP, 0)[:, :, None, None, None]
    brighter, colour, contrast, down, right, top, left = (drawn[:, i] for i in range(7))
    x = x + BRIGHTER * (2 * brighter - 1)
    grey = x.mean(-1, keepdims=True)
    x = grey + 2 * colour * (x - grey)
    whole = x.mean((1, 2, 3), keepdims=True)
    x = whole + (contrast + 0.5) * (x - whole)
    rows, columns = jnp.arange(height)[None, :, None, None], jnp.arange(width)[None, None, :, None]

    def shifted(places: jax.Array, size: int, drawn: jax.Array) -> jax.Array:
        farthest = size // SHIFTED
        return jnp.clip(places + jnp.floor(drawn * (2 * farthest + 1)).astype(int) - farthest, 0, size - 1)

    x = jnp.take_along_axis(x, shifted(rows, height, down), 1)
    x = jnp.take_along_axis(x, shifted(columns, width, right), 2)
    hole = (jnp.abs(rows - top * height) < height / CUT) & (jnp.abs(columns - left * width) < width / CUT)
    return jnp.where(hole, 0.5, x)


def make_loss(model: Model, attribute_dropout: float, attribute_weight: float, kl_weight: float = 1.0):
    """Returns loss(params, key, x, y, mask) -> ([B] loss, dict of [B] terms), what the first stage minimises.

    The loss is -(bound + attribute_weight * attribute terms) / D, D the number of pixel values: of the order
    of 1, so that gradients can be clipped at a norm that does not depend on the size of the face. Its bound has the KL
    `kl_weight` times (Higgins et al. 2017), the terms that are recorded once.
    """

    def loss(params: Params, key: jax.Array, x: jax.Array, y: jax.Array, mask: jax.Array):
        bound_key, hide_key = split_each(key, 2)
        seen = hide_attributes(hide_key, mask, attribute_dropout / 2, attribute_dropout / 2)
        terms = elbo(model, params, bound_key, x, y, seen, known=mask)
        gain = (terms.reconstruction - kl_weight * terms.kl
                + attribute_weight * (terms.attributes + terms.attributes_prior))
        return -gain / x[0].size, {"bound": terms.bound, **terms._asdict()}

    return loss


def make_flow_loss(model: Model, wholly: float = 0.0, partly: float = 0.0, dropout: bool = False):
    """Returns loss(params, key, x, y, mask) -> ([B] loss, dict of [B] terms), what the second stage minimises.

    It is the matching error of the flow at z ~ q(z|x, y), y as far as it is known, of whose attributes some are hidden
    from the flow alone, as `hide_attributes` has it. The encoder gets no gradient. dropout: whether units are dropped.
    """

    def loss(params: Params, key: jax.Array, x: jax.Array, y: jax.Array, mask: jax.Array):
        match_key, hide_key, latent_key = split_each(key, 3)
        z = jax.lax.stop_gradient(model.posterior(params, x, y, mask).sample(latent_key))
        seen = hide_attributes(hide_key, mask, wholly, partly)
        error = matching(model, params, match_key, z, y, seen, dropout)
        return error, {"matching": error}

    return loss


def make_detail_loss(model: Model):
    """Returns loss(params, key, x, y, mask) -> ([B] loss, dict of [B] terms), what the detail's stage minimises.

    It is -log p(x|z) / D at z ~ q(z|x, y), y as far as it is known, one group of pixels a level standing for all.
    """

    def loss(params: Params, key: jax.Array, x: jax.Array, y: jax.Array, mask: jax.Array):
        latent_key, group_key = split_each(key, 2)
        z = model.posterior(params, x, y, mask).sample(latent_key)
        reconstruction = detail.log_prob(model, params, x, z, y, mask, group_key)
        return -reconstruction / x[0].size, {"reconstruction": reconstruction}

    return loss


def make_adversarial_loss(model: Model, dropout: float, pixel_deviation: float, penalty_weight: float,
                          wrong_attributes: float = 0.0, augmented: bool = False):
    """Returns loss(params, key, x, y, mask) -> ([B] loss, dict of [B] terms), whose gradient moves both players."""

    def loss(params: Params, key: jax.Array, x: jax.Array, y: jax.Array, mask: jax.Array):
        terms = adversarial(model, params, key, x, y, mask, dropout, pixel_deviation, wrong_attributes, augmented)
        return terms.generator + terms.discriminator + penalty_weight / 2 * terms.penalty, terms._asdict()

    return loss
