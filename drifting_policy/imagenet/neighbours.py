"""Nearest neighbours among features: precision, recall, density, coverage, and how near samples are to the training images."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from drifting_policy.imagenet.fidelity import Rows, finite_rows

ROUNDING = 1e-12  # squared distances below this share of the squared lengths are those of equal features
PRECISION_K, COVERAGE_K = 3, 5  # as published


@dataclass(frozen=True)
class Manifolds:
    """What the balls around features tell, for each feature of the set that it is an average over.

    `precision` of a sample: it lies in the ball of a reference. `recall` of a reference: it lies in the ball of a sample
    (Kynkaanniemi et al. 2019). `density` of a sample: the number of balls of references that it lies in, over k. `coverage` of
    a reference: its ball holds a sample (Naeem et al. 2020). A ball reaches to the k-th neighbour in the same set, which
    belongs to it.
    """

    precision: Bool[Tensor, " n"]
    recall: Bool[Tensor, " p"]
    density: Float64[Tensor, " n"]
    coverage: Bool[Tensor, " p"]


def compare_manifolds(
    samples: Rows,
    references: Float[Tensor, "p e"],
    *,
    precision_k: int = PRECISION_K,
    coverage_k: int = COVERAGE_K,
    chunk: int = 1024,
) -> Manifolds:
    """Precision and recall with `precision_k`, density and coverage with `coverage_k` neighbours.

    Raises:
        ValueError: fewer features than neighbours, features that are not finite or of another dimension.
    """
    k = max(precision_k, coverage_k)
    own, theirs = nearest_in_set(samples, k=precision_k, chunk=chunk), nearest_in_set(references, k=k, chunk=chunk)
    ball, wide_ball = theirs[:, precision_k - 1], theirs[:, coverage_k - 1]
    precision, density = [], []
    recall, nearest = torch.zeros_like(ball, dtype=torch.bool), torch.full_like(ball, torch.inf)
    for part, radii in zip(_parts(samples, chunk), _parts(own[:, -1:], chunk), strict=True):
        apart = distances(part, references)
        precision.append((apart <= ball).any(1))
        density.append((apart <= wide_ball).double().sum(1) / coverage_k)
        recall |= (apart <= radii).any(0)
        nearest = torch.minimum(nearest, apart.amin(0))
    return Manifolds(torch.cat(precision), recall, torch.cat(density), nearest <= wide_ball)


def nearest_in_set(features: Rows, *, k: int, chunk: int = 1024) -> Float64[Tensor, "n k"]:
    """The distances from each feature to the `k` others of its set that are nearest, ascending.

    Raises:
        ValueError: not more than `k` features.
    """
    if not 1 <= k < len(features):
        raise ValueError(f"{k} neighbours of each feature need more than {max(k, 1)} features; got {len(features)}.")
    found = []
    for first in range(0, len(features), chunk):
        apart = distances(features[first : first + chunk], features)
        rows = torch.arange(len(apart), device=apart.device)
        apart[rows, first + rows] = -1.0  # the feature itself comes first, also before its copies
        found.append(apart.topk(k + 1, largest=False).values[:, 1:])
    return torch.cat(found)


def nearest(samples: Rows, references: Float[Tensor, "p e"], *, chunk: int = 1024) -> Float64[Tensor, " n"]:
    """The distance from each sample to the nearest reference."""
    return torch.cat([distances(part, references).amin(1) for part in _parts(samples, chunk)])


def closer_share(first: Float64[Tensor, " n"], second: Float64[Tensor, " p"]) -> float:
    """The probability that a value of `first` lies below one of `second`, ties counted half (Mann and Whitney 1947).

    Of the distances of samples and of unseen images to the nearest training image it is 1/2 where nothing was copied, and tends
    to 1 where samples are copies (Meehan et al. 2020).
    """
    order = second.sort().values
    below = torch.searchsorted(order, first, right=False) + torch.searchsorted(order, first, right=True)
    return 1 - float(below.double().mean()) / (2 * len(second))


def distances(first: Rows, second: Float[Tensor, "p f"]) -> Float64[Tensor, "n p"]:
    """Euclidean distances by the dot-product form, in float64; those of equal features are exactly zero.

    Raises:
        ValueError: features that are not finite, or of another dimension.
    """
    x, y = finite_rows(first), finite_rows(second)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"Features of other dimensions cannot be compared: {x.shape[1]} and {y.shape[1]}.")
    middle = y.mean(0)  # a common offset would cost digits
    x, y = x - middle, y - middle
    lengths = x.square().sum(1, keepdim=True) + y.square().sum(1)
    squares = torch.addmm(lengths, x, y.mT, alpha=-2)
    return torch.where(squares > ROUNDING * lengths, squares, 0.0).sqrt()


def _parts(rows: Rows, chunk: int) -> Iterator[Rows]:
    """At most `chunk` rows after another."""
    return (rows[first : first + chunk] for first in range(0, len(rows), chunk))
