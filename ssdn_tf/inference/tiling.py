"""Overlapping tiles of one size that cover a picture: where to read, what to keep, where to write.

One dimension, a picture of length 10 on a grid of 2, tiles of side 6 with a halo of 1:

    pixels     0 1 2 3 4 5 6 7 8 9
    tile 0     K K K K K h              reads from 0, keeps 0..4, writes at 0
    tile 1             h K K K K K      reads from 4, keeps 1..5, writes at 5

The result of the tiles together is that of the whole picture under two conditions:

- A network that pools by two n times has a grid of 2^n pixels: its output at a pixel depends on the position of the
  pixel on the grid. All tiles start on the grid, and their sides are multiples of it. The last tile ends at the next
  multiple beyond the picture, and overlaps its neighbour by more than the others.
- What is kept must be further from the borders of the tile than the network's reach, except where the border is the
  picture's. That distance is the halo. `networks.designs` has the grid and the halo of each network.

A model that estimates the noise level of each picture takes a tile for a picture, so the level differs from tile to
tile, unless the caller gives all tiles the same one.
"""

import dataclasses
import itertools


@dataclasses.dataclass(frozen=True)
class Span:
    """One dimension of a tile.

    read: first pixel of the tile in the picture.
    side: of the tile.
    keep: first kept pixel, counted in the tile.
    write: first pixel that is written in the picture.
    length: how many pixels are kept and written.
    """

    read: int
    side: int
    keep: int
    write: int
    length: int

    @property
    def source(self):
        return slice(self.read, self.read + self.side)

    @property
    def kept(self):
        return slice(self.keep, self.keep + self.length)

    @property
    def target(self):
        return slice(self.write, self.write + self.length)


@dataclasses.dataclass(frozen=True)
class Tile:
    """rows, columns: Span."""

    rows: Span
    columns: Span

    @property
    def size(self):
        """(height, width)"""
        return self.rows.side, self.columns.side

    def cut(self, picture):
        """The tile [h,w,C] of a picture. It has the size of the tile, or less where the picture ends earlier."""
        return picture[self.rows.source, self.columns.source]

    def kept(self, part):
        """What is kept of `part` [h,w,C], as a view."""
        return part[self.rows.kept, self.columns.kept]

    def place(self, part, picture):
        """Writes what is kept of `part`, which has the size of the tile or of its `cut`, into `picture` [H,W,C].

        Raises:
            ValueError: the part has another size.
        """
        sizes = self.size, self.cut(picture).shape[:2]
        if part.shape[:2] not in sizes:
            raise ValueError(f"expected a part of {self.size[0]}x{self.size[1]}, received the shape {part.shape}.")
        picture[self.rows.target, self.columns.target] = self.kept(part)


def spans(length, side, halo, grid):
    """The tiles of one dimension: a list of Span, which write each of `length` pixels once.

    Args:
        length: of the picture, at least 1.
        side: of the tiles, a multiple of `grid`. A picture that fits into one tile gets one no larger than needed.
        halo: least number of pixels at an inner border of a tile that are not kept.
        grid: tiles start at its multiples.

    Raises:
        ValueError: the side is not a multiple of the grid, or has no room for two halos and something to keep.
    """
    if length < 1:
        raise ValueError(f"expected at least one pixel, received a length of {length}.")
    filled = to_grid(length, grid)
    check_side(side, halo if filled > side else 0, grid)
    if filled <= side:
        return [Span(read=0, side=filled, keep=0, write=0, length=length)]
    step = (side - 2 * halo) // grid * grid
    reads = [*range(0, filled - side, step), filled - side]
    # Neighbours share their overlap: each keeps half, so both halos get the surplus.
    borders = [0, *((left + side + right) // 2 for left, right in itertools.pairwise(reads)), length]
    found = []
    for read, begin, end in zip(reads, borders, borders[1:]):
        found.append(Span(read=read, side=side, keep=begin - read, write=begin, length=end - begin))
    return found


def least_side(halo, grid):
    """The smallest side of a tile with room for two halos and something to keep."""
    return to_grid(2 * halo, grid) + grid


def check_side(side, halo, grid):
    """Raises ValueError unless tiles of this side are on the grid and have room for two halos and something to keep."""
    least = least_side(halo, grid)
    if halo < 0 or side < least or side % grid:
        raise ValueError(f"expected a tile side that is a multiple of {grid} from {least} on, received {side}.")


def tiles(height, width, side, halo, grid):
    """The tiles of a picture: a list of Tile of one size, row by row; see `spans`.

    The size is `side` in a dimension that is cut, and that of the picture, up to the grid, in one that is not.
    """
    both = itertools.product(spans(height, side, halo, grid), spans(width, side, halo, grid))
    return [Tile(rows, columns) for rows, columns in both]


def whole(height, width):
    """The tile that is the whole picture."""
    return Tile(*(Span(read=0, side=side, keep=0, write=0, length=side) for side in (height, width)))


def to_grid(length, grid):
    """The next multiple of the grid."""
    return -(-length // grid) * grid
