"""Tiles cover a picture once, and a network that sees only tiles answers as if it saw the whole."""

import keras
import numpy as np
import pytest

from ssdn_tf.inference import tiling
from ssdn_tf.networks.designs import DESIGNS
from ssdn_tf.networks.unet import UNet

GRID = DESIGNS["paper"].grid

# (height, width, side, halo, grid): awkward ones, on small grids where tiles are many.
SIZES = [
    (19, 37, 8, 1, 2),
    (19, 37, 8, 0, 4),
    (37, 19, 12, 3, 4),
    (14, 9, 6, 2, 2),
    (1, 1, 32, 320, 32),
    (1, 100, 64, 16, 32),
    (32, 33, 32, 0, 32),
    (97, 128, 64, 10, 32),
    (700, 1000, 704, 320, 32),
]


def marked(height, width, side, halo, grid):
    """How often each pixel is written."""
    count = np.zeros((height, width), int)
    for tile in tiling.tiles(height, width, side, halo, grid):
        count[tile.rows.target, tile.columns.target] += 1
    return count


def joined(parts, height, width):
    """The picture of all (tile, part of it)."""
    picture = np.full((height, width, parts[0][1].shape[-1]), np.nan)
    for tile, part in parts:
        tile.place(part, picture)
    return picture


@pytest.mark.parametrize("size", SIZES)
def test_every_pixel_is_written_exactly_once(size):
    assert (marked(*size) == 1).all()


@pytest.mark.parametrize("size", SIZES)
def test_stitched_tiles_give_the_image_back(size):
    image = np.arange(size[0] * size[1] * 2).reshape(*size[:2], 2)
    tiles = tiling.tiles(*size)
    missing = [tiling.to_grid(length, size[4]) - length for length in size[:2]]
    filled = np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)))
    for picture in (image, filled):
        parts = [(tile, tile.cut(picture)) for tile in reversed(tiles)]
        assert np.array_equal(joined(parts, *size[:2]), image)


@pytest.mark.parametrize("size", SIZES)
def test_tiles_have_one_size_on_the_grid_and_keep_their_distance_from_inner_borders(size):
    height, width, side, halo, grid = size
    tiles = tiling.tiles(*size)
    assert len({(tile.rows.side, tile.columns.side) for tile in tiles}) == 1
    for length, spans in ((height, [t.rows for t in tiles]), (width, [t.columns for t in tiles])):
        filled = tiling.to_grid(length, grid)
        for span in spans:
            assert span.read % grid == 0 and span.side % grid == 0 and span.side <= side
            assert span.read + span.keep == span.write
            assert 0 <= span.read and span.read + span.side <= filled
            assert span.read == 0 or span.keep >= halo
            assert span.read + span.side == filled or span.side - span.keep - span.length >= halo


def test_a_picture_that_fits_in_is_one_tile_no_larger_than_needed():
    (tile,) = tiling.tiles(33, 1, 1024, halo=320, grid=32)
    assert (tile.rows.side, tile.columns.side) == (64, 32)


def test_the_example_of_the_docstring():
    first, second = tiling.spans(10, 6, halo=1, grid=2)
    assert (first.read, first.keep, first.write, first.length) == (0, 0, 0, 5)
    assert (second.read, second.keep, second.write, second.length) == (4, 1, 5, 5)


@pytest.mark.parametrize("arguments", [(0, 64, 8), (100, 50, 8), (100, 0, 8), (100, 64, 32), (100, 64, -1)])
def test_impossible_tiles_are_refused(arguments):
    with pytest.raises(ValueError, match="received"):
        tiling.spans(*arguments, grid=32)


def test_a_part_of_another_size_is_refused():
    tiles = tiling.tiles(40, 40, 64, 8, 32)
    with pytest.raises(ValueError, match="64x64"):
        joined([(tiles[0], np.zeros((40, 41, 1)))], 40, 40)


# ---------------------------------------------------------------- with the network


def network(blindspot, design="paper", width=2):
    """A small network with biases, which make what lies beyond a border differ from zeros."""
    net = UNet(3, design, blindspot=blindspot, width=width)
    net.build((None, None, None, 3))
    rng = np.random.default_rng(0)
    for weight in net.weights:
        if weight.name == "bias":
            weight.assign(0.1 * rng.standard_normal(weight.shape))
    return net


def answer(net, picture):
    return keras.ops.convert_to_numpy(net(picture[None]))[0]


def difference(net, shape, side, halo):
    """Largest difference between the results from tiles and from the whole picture."""
    height, width = shape
    picture = np.random.default_rng(1).random((*shape, 3), np.float32)
    tiles = tiling.tiles(height, width, side, halo, net.design.grid)
    tiled = joined([(tile, answer(net, tile.cut(picture))) for tile in tiles], height, width)
    return np.abs(tiled - answer(net, picture)).max()


@pytest.mark.parametrize("shape", [(1000, 40), (33, 743), (706, 737)])
def test_tiles_with_the_halo_give_the_result_of_the_whole(shape):
    assert difference(network(blindspot=True), shape, 704, DESIGNS["paper"].halo()) <= 1e-6


@pytest.mark.parametrize("shape", [(501, 40), (9, 300), (230, 233)])
@pytest.mark.parametrize("blindspot", [True, False])
def test_tiles_of_the_compact_network_need_a_smaller_halo(shape, blindspot):
    halo = DESIGNS["compact"].halo(blindspot)
    assert halo == (80 if blindspot else 40)
    assert difference(network(blindspot, "compact"), shape, 2 * halo + 40, halo) <= 3e-6


@pytest.mark.parametrize("blindspot", [True, False])
def test_too_small_a_halo_of_the_compact_network_is_seen(blindspot):
    """Negative control."""
    side = 2 * DESIGNS["compact"].halo(blindspot) + 40
    assert difference(network(blindspot, "compact"), (501, 40), side, 8) > 1e-4


def test_half_the_halo_is_enough_without_a_blind_spot():
    assert difference(network(blindspot=False), (500, 40), 352, 160) <= 1e-6


def test_a_small_halo_is_seen():
    """Negative control: 0.1 where the answers reach 3."""
    assert difference(network(blindspot=True), (500, 40), 256, 64) > 1e-2
    assert difference(network(blindspot=False), (500, 40), 256, 32) > 1e-3


def test_tiles_off_the_grid_are_seen():
    """Negative control: the same halo, but the second tile starts at 16."""
    net = network(blindspot=True, width=4)
    picture = np.random.default_rng(1).random((736, 32, 3), np.float32)
    whole = answer(net, picture)
    moved = answer(net, picture[16 : 16 + 704])
    assert np.abs(moved[336:368] - whole[352:384]).max() > 1e-2
    aligned = answer(net, picture[32:])
    assert np.abs(aligned[320:352] - whole[352:384]).max() <= 1e-6
