"""Overlapping tiles of one size that cover a picture: where to read, what to keep, where to write.

One dimension, a picture of length 10 on a grid of 2, tiles of side 6 with a halo of 1:

    pixels     0 1 2 3 4 5 6 7 8 9
    tile 0     K K K K K h              reads from 0, keeps 0..4, writes at 0
    tile 1             h K K K K K      reads from 4, keeps 1..5, writes at 5

Two things decide whether the stitched result is that of the whole picture:

- The network pools by two five times, so what it does at a pixel depends on the pixel's position
  modulo 32. All tiles therefore start on that grid and have sides that are multiples of it. The
  picture is filled with zeros at bottom and right up to the grid, as the served model does it with
  the whole picture, and the last tile ends there; it overlaps its neighbour by more than the others.
- An output depends on pixels at most 315 rows and columns away (157 without a blind spot), so what
  is kept must lie that far inside the tile, except where the tile ends with the picture. The default
  halo of 320 is that, rounded up to the grid; test_tiling.py measures it.

A model that estimates the noise level of each picture sees a tile as a picture of its own: its
level, and so its result, then differs from tile to tile.
"""

import dataclasses
import itertools

import numpy as np

GRID = 32  # that of networks.GRID, which this module must not import
HALO = 320


@dataclasses.dataclass(frozen=True)
class Span:
    """One dimension of a tile.

    read: first pixel of the tile in the filled-up picture.
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

    def cut(self, filled):
        """The tile [*size, C] of a picture that `fill` has filled up."""
        return filled[self.rows.source, self.columns.source]

    def place(self, part, picture):
        """Writes what is kept of `part` [*size, C] into `picture` [H,W,C].

        Raises:
            ValueError: the part has another size.
        """
        if part.shape[:2] != self.size:
            raise ValueError(f"expected a part of {self.size[0]}x{self.size[1]}. Received: shape={part.shape}")
        picture[self.rows.target, self.columns.target] = part[self.rows.kept, self.columns.kept]


def spans(length, side, halo=HALO, grid=GRID):
    """The tiles of one dimension: a list of Span, which write each of `length` pixels once.

    Args:
        length: of the picture, at least 1.
        side: of the tiles, a multiple of `grid`; a picture that fits in is one tile, no larger than needed.
        halo: pixels at an inner border of a tile that are not kept, at least.
        grid: tiles start at its multiples.

    Raises:
        ValueError: the side is off the grid, or leaves nothing beside two halos.
    """
    if length < 1:
        raise ValueError(f"expected at least one pixel. Received: length={length}")
    if side < grid or side % grid:
        raise ValueError(f"expected a tile side that is a multiple of {grid}. Received: side={side}")
    filled = to_grid(length, grid)
    if filled <= side:
        return [Span(read=0, side=filled, keep=0, write=0, length=length)]
    step = (side - 2 * halo) // grid * grid
    if halo < 0 or step < grid:
        raise ValueError(f"expected a tile side of at least two halos and {grid}. Received: side={side}, halo={halo}")
    reads = [*range(0, filled - side, step), filled - side]
    # Neighbours share what they both have: each keeps half, so that the surplus goes to both halos.
    borders = [0, *((left + side + right) // 2 for left, right in itertools.pairwise(reads)), length]
    found = []
    for read, begin, end in zip(reads, borders, borders[1:]):
        found.append(Span(read=read, side=side, keep=begin - read, write=begin, length=end - begin))
    return found


def tiles(height, width, side, halo=HALO, grid=GRID):
    """The tiles of a picture: a list of Tile of one size, row by row; see `spans`.

    The size is `side` in a dimension that is cut, and the filled-up picture's in one that is not.
    """
    both = itertools.product(spans(height, side, halo, grid), spans(width, side, halo, grid))
    return [Tile(rows, columns) for rows, columns in both]


def to_grid(length, grid=GRID):
    """The next multiple of the grid."""
    return -(-length // grid) * grid


def fill(image, grid=GRID):
    """Fills [H,W,C] with zeros at bottom and right up to the grid."""
    missing = [to_grid(length, grid) - length for length in image.shape[:2]]
    return np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)))


def stitch(parts, height, width):
    """Joins what came of the tiles.

    Args:
        parts: iterable of (Tile, array [h,w,C] of the tile's size), in any order, each tile of
            `tiles(height, width, ...)` once.
        height, width: of the picture.

    Returns:
        [height, width, C], with the dtype of the first part.

    Raises:
        ValueError: a part has another size than its tile.
    """
    picture = None
    for tile, part in parts:
        if picture is None:
            picture = np.empty((height, width, part.shape[2]), part.dtype)
        tile.place(part, picture)
    return picture
