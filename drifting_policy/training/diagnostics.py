"""Diagnostics: drawn chunks held against demonstrations of similar observations. Pure functions on tensors.

A data set shows one chunk for every observation. What else could have been done there is read off the demonstrations that
came closest to the observation; they differ a little more than they would at one and the same observation, since they come
close without meeting it. Every step of a chunk counts, padded ones too, as in the training losses.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

NEIGHBOURS = 8  # similar demonstrations per observation
COVERING_NEIGHBOUR = 2  # a demonstration is covered by a sample that is nearer than its second-nearest neighbour
LONGEST_PIECE = 4096  # an episode of more chunks counts as several, which bounds the memory of the search


def similar_rows(
    queries: Float[Tensor, "b f"], observations: Float[Tensor, "n f"], episode: Int[Tensor, " n"], *, count: int = NEIGHBOURS
) -> Int[Tensor, "b k"]:
    """The rows of the `count` observations nearest to each query, at most one of an episode, nearest first.

    Neighbouring steps of one episode hold nearly the same chunk, so several of them would look like demonstrations that
    agree. Rows of one episode are consecutive; with fewer than `count` episodes there are as many rows as episodes.
    """
    distances, rows = [], []
    start = 0
    for length in torch.unique_consecutive(episode, return_counts=True)[1].tolist():
        for first in range(start, start + length, LONGEST_PIECE):
            piece = observations[first : min(first + LONGEST_PIECE, start + length)]
            distance, place = torch.cdist(queries, piece).min(dim=1)
            distances.append(distance)
            rows.append(first + place)
        start += length
    order = torch.stack(distances, dim=1).topk(min(count, len(rows)), dim=1, largest=False).indices
    return torch.stack(rows, dim=1).gather(1, order)


def deviation(chunks: Float[Tensor, "b g t d"]) -> Float[Tensor, ""]:
    """Root mean square distance per step of the g chunks of one observation from their mean; NaN for a single chunk.

    Its square is the unbiased variance (divided by g - 1), so that different g may be compared.
    """
    if chunks.shape[1] < 2:
        return chunks.new_tensor(math.nan)
    return chunks.var(dim=1).sum(dim=-1).mean().sqrt()


def chunk_distances(first: Float[Tensor, "b g t d"], second: Float[Tensor, "b k t d"]) -> Float[Tensor, "b g k"]:
    """Mean Euclidean distance per step between every two chunks of one observation."""
    return torch.stack([(chunk[:, None] - second).norm(dim=-1).mean(dim=-1) for chunk in first.unbind(1)], dim=1)


def coverage(
    samples: Float[Tensor, "b g t d"], demonstrations: Float[Tensor, "b k t d"], *, neighbour: int = COVERING_NEIGHBOUR
) -> Float[Tensor, ""]:
    """The share of the demonstrations that have a sample within reach: no farther than their own `neighbour`-nearest other.

    Coverage of Naeem et al. 2020 (arXiv 2002.09797), a recall whose balls stand around the data, so that stray
    samples cannot inflate it as they do that of Kynkäänniemi et al. 2019 (arXiv 1904.06991); here it is taken over the
    demonstrations of each observation apart. One sample from the distribution of k demonstrations covers neighbour / k of
    them; g samples cover 1 - Π_{j < neighbour} (k - 1 - j) / (k + g - 1 - j). NaN without that many neighbours.
    """
    k = demonstrations.shape[1]
    if k <= neighbour:
        return samples.new_tensor(math.nan)
    itself = torch.eye(k, dtype=torch.bool, device=samples.device)
    reach = chunk_distances(demonstrations, demonstrations).masked_fill(itself, math.inf).kthvalue(neighbour, dim=2).values
    return (chunk_distances(samples, demonstrations).amin(dim=1) <= reach).float().mean()


def sample_figures(
    samples: Float[Tensor, "b g t d"], demonstrated: Float[Tensor, "b t d"], similar: Float[Tensor, "b k t d"]
) -> dict[str, float]:
    """How samples compare with the demonstrated chunk and with those of similar observations; lengths in the units given.

    `val_spread_to_data` is their deviation divided by that of the similar demonstrations. `val_spread_to_error` is the
    spread-error ratio of ensemble forecasts, sqrt((g + 1) / g) deviation / RMS error of the mean: 1 where the demonstration
    might be one of the samples, below 1 where they are too sure (Fortin et al. 2014, doi
    10.1175/JHM-D-14-0008.1). `val_nearest_demonstration` is the mean distance of a sample from the nearest similar
    demonstration, a precision; `val_nearest_sample` that of the demonstrated chunk from the nearest sample, a recall (minADE
    in trajectory forecasting).
    """
    g = samples.shape[1]
    spread, error = deviation(samples), (samples.mean(dim=1) - demonstrated).square().sum(dim=-1).mean().sqrt()
    figures = {
        "val_spread_to_data": spread / deviation(similar),
        "val_spread_to_error": math.sqrt((g + 1) / g) * spread / error,
        "val_nearest_demonstration": chunk_distances(samples, similar).amin(dim=2).mean(),
        "val_nearest_sample": chunk_distances(demonstrated[:, None], samples).amin(dim=2).mean(),
        "val_coverage": coverage(samples, similar),
    }
    return {name: float(value) for name, value in figures.items()}


def data_figures(
    demonstrated: Float[Tensor, "b t d"], similar: Float[Tensor, "b k t d"], mean: Float[Tensor, "t d"]
) -> dict[str, float]:
    """What the figures of samples are measured by.

    `data_nearest_demonstration` is the distance of the demonstrated chunk from the nearest similar demonstration: what a
    sample that is as good as a demonstration has for `val_nearest_demonstration` and, with g = k, for `val_nearest_sample`.
    `data_mean_error` is the error of a policy that always answers with the `mean` chunk of the training set.
    """
    return {
        "data_nearest_demonstration": float(chunk_distances(demonstrated[:, None], similar).amin(dim=2).mean()),
        "data_mean_error": float((demonstrated - mean).norm(dim=-1).mean()),
    }
