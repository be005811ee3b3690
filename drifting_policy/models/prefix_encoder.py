"""PrefixEncoder: the commands that are committed already, as one more conditioning token."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional


class PrefixEncoder(nn.Module):
    """Lets an action head of any kind continue commands that it cannot change any more.

    Action prefixes at training time (arXiv 2512.05964, "Training-time action conditioning for efficient real-time chunking")
    replace guidance, for which a head that answers in one evaluation has no steps. There a prefix enters the head as
    actions without noise; here it is a token beside those of the observation, so that no head has to know of it.
    """

    def __init__(self, *, length: int, action_dim: int, embed_dim: int) -> None:
        """A token of `embed_dim` numbers for up to `length` commands of `action_dim` numbers."""
        super().__init__()
        self.length = length
        # One bit beside every command says whether it is known: zeros are a command too.
        self.embed = nn.Sequential(
            nn.Linear(length * (action_dim + 1), 2 * embed_dim), nn.SiLU(), nn.Linear(2 * embed_dim, embed_dim)
        )

    def forward(self, prefix: Float[Tensor, "b k d"], counts: Int[Tensor, " b"]) -> Float[Tensor, "b 1 e"]:
        """The token of the first `counts` commands of `prefix`, in network units; what stands behind them is not seen.

        Raises:
            ValueError: a prefix of more than `length` commands.
        """
        if prefix.shape[1] > self.length:
            raise ValueError(f"A prefix has at most {self.length} commands; got {prefix.shape[1]}.")
        padded = functional.pad(prefix, (0, 0, 0, self.length - prefix.shape[1]))
        known = (torch.arange(self.length, device=prefix.device) < counts[:, None])[..., None]
        seen = torch.cat([padded.where(known, padded.new_zeros(())), known.to(prefix)], dim=-1)
        token: Tensor = self.embed(seen.flatten(1))
        return token[:, None]
