"""How far generated images are from real ones, told by their features: Frechet distance and Inception score, in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

Rows = Float[Tensor, "n e"]
ROUNDING = 1e-6  # an eigenvalue may be negative by this share of the largest one; float32 covariances in files are


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean " e" and covariance "e e" (divided by count - 1) of `count` features; None where a file does not tell their number.

    The covariance of a single feature is zero, which tells nothing: `frechet_distance` refuses it.
    """

    count: int | None
    mean: Float64[Tensor, " e"]
    covariance: Float64[Tensor, "e e"]

    @staticmethod
    def of(features: Rows) -> "FeatureStatistics":
        """The statistics of features "n e".

        Raises:
            ValueError: no features, or features that are not finite.
        """
        wide = finite_rows(features)
        mean = wide.mean(0)
        centred = wide - mean
        return FeatureStatistics(len(wide), mean, centred.mT @ centred / max(len(wide) - 1, 1))

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """The statistics of both sets together, as if they had been computed from all features (Chan et al. 1979).

        Raises:
            ValueError: the number of features is not known, or they have another dimension.
        """
        if self.count is None or other.count is None:
            raise ValueError("Statistics of an unknown number of features cannot be merged.")
        _check_dimensions(self, other)
        count, gap = self.count + other.count, other.mean - self.mean
        scatter = self.covariance * (self.count - 1) + other.covariance * (other.count - 1)
        scatter = scatter + torch.outer(gap, gap) * (self.count * other.count / count)
        return FeatureStatistics(count, self.mean + gap * (other.count / count), scatter / (count - 1))


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """The squared Frechet distance of two normal distributions (Dowson and Landau 1982), as Heusel et al. 2017 use it for FID.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)). The last trace is the sum of the square roots of the eigenvalues of S1 S2. With
    S1 = A A' and S2 = B B' these roots are the singular values of A' B: real and not negative however S1 S2 is rounded, and
    twice as many digits are left of the small ones.

    Raises:
        ValueError: another dimension, a single feature, or a matrix that is no covariance.
    """
    _check_dimensions(first, second)
    if 1 in (first.count, second.count):
        raise ValueError("A Frechet distance needs at least two features on either side: one has no covariance.")
    overlap = torch.linalg.svdvals(_root(first.covariance).mT @ _root(second.covariance)).sum()
    spread = first.covariance.trace() + second.covariance.trace() - 2 * overlap
    return max(0.0, float((first.mean - second.mean).square().sum() + spread))


def inception_score(probabilities: Float[Tensor, "n classes"], *, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation over `splits` of exp(mean KL(p(y|x) || p(y))) (Salimans et al. 2016).

    Samples often come in the order of their classes, so the splits are parts of a permutation drawn from `seed`.

    Raises:
        ValueError: fewer samples than splits, or rows that are no probabilities.
    """
    wide = finite_rows(probabilities)
    if not 1 <= splits <= len(wide):
        raise ValueError(f"An Inception score in {splits} splits needs as many samples at least; got {len(wide)}.")
    if (wide < 0).any() or (wide.sum(1) - 1).abs().max() > 1e-3:
        raise ValueError("An Inception score needs rows of probabilities, which are not negative and add up to one.")
    order = torch.randperm(len(wide), generator=torch.Generator().manual_seed(seed)).to(wide.device)
    scores = [_exponential_divergence(wide[rows]) for rows in order.tensor_split(splits)]
    return float(np.mean(scores)), float(np.std(scores))


def bootstrap_interval(
    statistic: Callable[[Tensor], float],
    rows: Rows,
    *,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> tuple[float, float]:
    """Where `statistic` of another n rows from the same source lies with `confidence`, by resampling (Efron 1979).

    A Frechet distance of n features is too large by an amount that shrinks with n, and that of a resample once more so. What
    resampling tells is the spread; it is laid around the value of the rows themselves, and the interval speaks of the
    statistic of n samples and not of infinitely many.

    Raises:
        ValueError: confidence outside (0, 1), or no resamples.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(f"confidence must lie in (0, 1) and resamples be positive; got {confidence} and {resamples}.")
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randint(len(rows), (len(rows),), generator=generator).to(rows.device) for _ in range(resamples)]
    values = np.array([statistic(rows[draw]) for draw in draws])
    low, high = np.quantile(values - values.mean(), [(1 - confidence) / 2, (1 + confidence) / 2])
    value = statistic(rows)
    return value + float(low), value + float(high)


def share_interval(count: int, total: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a share, `count` of `total` (Wilson 1927), which holds near 0 and 1 as well.

    Raises:
        ValueError: confidence outside (0, 1), or no such share.
    """
    if not (0 < confidence < 1 and 0 <= count <= total and total):
        raise ValueError(f"A share is a part of a whole, and confidence in (0, 1); got {count} of {total}, {confidence}.")
    z, share = NormalDist().inv_cdf((1 + confidence) / 2), count / total
    centre, half = share + z**2 / (2 * total), z * (share * (1 - share) / total + (z / (2 * total)) ** 2) ** 0.5
    low, high = (centre - half) / (1 + z**2 / total), (centre + half) / (1 + z**2 / total)
    return (low if count else 0.0), (high if count < total else 1.0)


def finite_rows(features: Rows) -> Float64[Tensor, "n e"]:
    """The same rows in float64.

    Raises:
        ValueError: there are none, or one holds NaN or infinity.
    """
    if not features.numel():
        raise ValueError(f"There must be at least one feature; the shape is {tuple(features.shape)}.")
    if not (good := features.isfinite().all(1)).all():
        raise ValueError(
            f"{int((~good).sum())} of {len(good)} features hold NaN or infinity, first row {int(good.int().argmin())}."
        )
    return features.double()


def _exponential_divergence(probabilities: Float64[Tensor, "n classes"]) -> float:
    marginal = probabilities.mean(0)
    divergence = torch.special.xlogy(probabilities, probabilities) - torch.special.xlogy(probabilities, marginal)
    return float(divergence.sum(1).mean().exp())


def _root(covariance: Float64[Tensor, "e e"]) -> Float64[Tensor, "e e"]:
    """A matrix A with A A' = `covariance`."""
    values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
    if not values.isfinite().all() or values[0] < -ROUNDING * values[-1].abs():
        raise ValueError(f"This is no covariance: its eigenvalues reach from {float(values[0])} to {float(values[-1])}.")
    root: Tensor = vectors * values.clamp(min=0).sqrt()
    return root


def _check_dimensions(first: FeatureStatistics, second: FeatureStatistics) -> None:
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"Features of other dimensions cannot be compared: {len(first.mean)} and {len(second.mean)}.")
