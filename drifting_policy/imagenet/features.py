"""Features: a map of a network as vectors that the drifting field compares, at every position and over cells of positions."""

from collections.abc import Callable, Mapping, Sequence

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-6  # under each square root

# Images "b c h w" become named vectors "b s e": s of them for each image.
Extractor = Callable[[Tensor], Mapping[str, Tensor]]


def map_features(name: str, maps: Float[Tensor, "b e h w"], *, cells: Sequence[int]) -> dict[str, Tensor]:
    """Vectors "b s e" of one map (arXiv 2602.04770, appendix A.5), in the order and by the names of the release.

    They are `name`, all positions row by row in the type of the map; `name_mean` and `name_std` over the whole map; and
    `name_mean_2`, `name_std_2` over squares of 2 by 2 positions, row by row, for each of `cells` that divides both edges of the
    map. Means and standard deviations are float32.
    """
    height, width = maps.shape[2:]
    moments = {cell: cell_moments(maps, cell) for cell in cells if not (height % cell or width % cell)}
    mean, deviation = map_moments(maps)
    found = {name: positions(maps), f"{name}_mean": mean, f"{name}_std": deviation}
    found |= {f"{name}_mean_{cell}": mean for cell, (mean, _) in moments.items()}
    return found | {f"{name}_std_{cell}": deviation for cell, (_, deviation) in moments.items()}


def positions(maps: Float[Tensor, "b e h w"]) -> Float[Tensor, "b s e"]:
    """One vector for each position, row by row."""
    return maps.flatten(2).mT


def map_moments(maps: Float[Tensor, "b e h w"]) -> tuple[Float[Tensor, "b 1 e"], Float[Tensor, "b 1 e"]]:
    """Mean and standard deviation over all positions; see `moments`."""
    mean, deviation = moments(maps.flatten(2), dim=2)
    return mean[:, None], deviation[:, None]


def cell_moments(maps: Float[Tensor, "b e h w"], cell: int) -> tuple[Float[Tensor, "b s e"], Float[Tensor, "b s e"]]:
    """Mean and standard deviation over squares of `cell` by `cell` positions, which must divide the map; see `moments`."""
    # The positions of a cell stand on the first axis: sums over short inner axes take many times as long.
    mean, deviation = moments(rearrange(maps, "b e (r p) (s q) -> (p q) b e r s", p=cell, q=cell), dim=0)
    return positions(mean), positions(deviation)


def moments(values: Float[Tensor, "..."], *, dim: int) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Mean and standard deviation over the axis `dim`, float32.

    The deviation is sqrt(variance + 1e-6), of a variance that divides by the number of values.
    """
    wide = values.float()
    mean = wide.mean(dim, keepdim=True)
    variance = (wide - mean).square().mean(dim)
    return mean.squeeze(dim), (variance + EPSILON).sqrt()


def root_mean_square(maps: Float[Tensor, "b e h w"]) -> Float[Tensor, "b 1 e"]:
    """sqrt(mean of x^2 over all positions + 1e-6) of each channel: the feature `norm_x` of the release; float32."""
    squares = maps.float().square().mean(dim=(2, 3))
    return (squares + EPSILON).sqrt()[:, None]


def combine(*extractors: Extractor) -> Extractor:
    """An extractor that gives the features of all `extractors`, one after another.

    Raises (when called):
        ValueError: a name that two of them give.
    """

    def extract(images: Tensor) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for extractor in extractors:
            more = extractor(images)
            if twice := sorted(found.keys() & more.keys()):
                raise ValueError(f"Two extractors give the features {twice}.")
            found |= more
        return found

    return extract
