"""The sizes of the networks, without Keras: what `unet.UNet` builds, and what tiling must know.

A new U-Net is one entry in DESIGNS.
"""

from typing import NamedTuple


class Design(NamedTuple):
    """A U-Net; features are counted in multiples of its width.

    width: features of the first convolution, by default.
    encoder: of the convolution before each pooling, from the full resolution down.
    bottom: of the convolution after the last pooling.
    decoder: of the two convolutions of each level, from the full resolution down.
    head: of the 1x1 convolutions that join the four directions, without the last one.
    plain_head: the same in a network without a blind spot, which sees all directions at once.
    tile: side of the tiles in which large pictures are denoised, as large as the memory of most machines allows.
    residual: the network sees the image minus 0.5 and predicts the difference of the mean from the average of
        the eight neighbours. Its last layer starts a tenth as large. With a blind spot, its 1x1 convolutions also see
        the eight neighbours: which of them agree tells what impulse noise has replaced. That is worth 0.5 dB after
        2,000 crops, and nothing after 10,000.
    """

    width: int
    encoder: tuple
    bottom: int
    decoder: tuple
    head: tuple
    plain_head: tuple
    tile: int
    residual: bool = False

    @property
    def grid(self):
        """Heights and widths are filled up to multiples of this."""
        return 2 ** len(self.encoder)

    def reach(self, blindspot=True):
        """An output depends on inputs at most this many rows or columns away."""
        # Of shifted layers, all of the reach lies on one side.
        return 10 * self.grid - 5 if blindspot else 5 * self.grid - 3

    def halo(self, blindspot=True):
        """`reach`, rounded up to the grid: how far tiles must overlap to give the result of the whole image."""
        return -(-self.reach(blindspot) // self.grid) * self.grid


DESIGNS = {
    # Laine et al. 2019, supplement, table 1.
    "paper": Design(
        width=48,
        encoder=(1, 1, 1, 1, 1),
        bottom=1,
        decoder=(2, 2, 2, 2, 2),
        head=(8, 2),
        plain_head=(2, 2),
        tile=1536,
    ),
    # Few features at full resolution, where they are expensive: a sixth of the paper's work, a quarter of its weights.
    "compact": Design(
        width=16,
        encoder=(1, 3, 4),
        bottom=6,
        decoder=(2, 3, 4),
        head=(8, 8, 4),
        plain_head=(4, 4),
        tile=896,
        residual=True,
    ),
}
