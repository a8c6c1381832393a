"""Tiles on an existing Dask cluster. Needs the package distributed; the workers need this package, and the model.

Pictures are read and written here. A worker gets a tile, loads the model at its first one, and sends the result back,
so the machines need no common file system, except for a model that is not one of the package. Dask gives the tiles of
a worker that is lost to the others.
"""

import collections
import functools
import os
import re
import threading

from ssdn_tf.errors import Interrupted, UserError, optional
from ssdn_tf.inference import pictures, precision, pretrained, tiling

_AHEAD = 2  # tiles on their way, for each worker
_TIMEOUT = "10s"  # for a first answer of the scheduler
_one_at_a_time = threading.Lock()  # a model uses all cores; Keras is not for several threads


class ClusterDenoiser(pictures.PictureDenoiser):
    """A PictureDenoiser whose tiles are denoised by the workers of a cluster. `tiles` may be called by several threads.

    Args:
        address: of the scheduler, such as tcp://HOST:8786.
        model, tile, ensemble: as for PictureDenoiser.

    Raises:
        UserError: distributed is not installed, no scheduler answers, or it has no workers.
    """

    def __init__(self, address, model=None, tile=pictures.predictor.AUTO, ensemble=1):
        super().__init__(model, tile, ensemble)
        self._client = _connect(address)
        self.workers = len(self._client.scheduler_info(n_workers=-1)["workers"])
        if not self.workers:
            raise UserError(f"expected workers at '{address}', received none.")

    def tiles(self, plane, limits, noise=None, done=()):
        with _one_at_a_time:
            model, view, parameter = self._prepared(plane, limits, noise)
            parts = model.tiles_of(view, self.tile) or [tiling.whole(*plane.shape[:2])]
            parameter = parameter if model.needs_level else None
            if len(parts) > 1 and len(done) < len(parts):
                # All tiles of a picture have its level, also where the model finds it.
                parameter = model.parameter_of_tiles(view, parameter, self.tile)
        name = self._model and str(self._model)
        if name and name not in pretrained.names():
            name = os.path.abspath(name)  # a worker has another working directory
        waiting = collections.deque()
        for number, tile in enumerate(parts):
            if number in done:
                continue
            settings = (name, self.ensemble, limits, parameter, precision.used())
            waiting.append((number, tile, self._client.submit(_denoise_part, tile.cut(plane), *settings, pure=False)))
            if len(waiting) > _AHEAD * self.workers:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())


def _result(number, tile, future):
    try:
        return number, tile, *future.result()
    except Exception as error:  # what a worker raises, such as that it lacks the model; and Dask's own
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        advice = "all need this package" if isinstance(error, ImportError) else "the same command goes on"
        raise Interrupted(f"a worker of the cluster cannot denoise ({reason}); {advice}.") from error


def _connect(address):
    if not re.fullmatch(r"\w+://.+", address):  # the client would try to reach it for 20 seconds
        raise UserError(f"expected an address such as tcp://HOST:8786, received '{address}'.")
    with optional("A cluster needs Dask", "dask"):
        import distributed
    try:
        return distributed.Client(address, timeout=_TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(f"expected a Dask scheduler at '{address}', received '{error}'.") from error


def _denoise_part(part, model, ensemble, limits, parameter, asked):
    """(denoised, std, noise) of a tile [h,w,C], on a worker."""
    with _one_at_a_time:
        stamp = pictures.stamp(model) if model else None
        precision.use(asked)
        worker = _worker(model, ensemble, parameter is not None, stamp, asked)
        worker.parameters = {} if parameter is None else {part.shape[-1]: parameter}
        return worker.plane(part, limits)


@functools.lru_cache(maxsize=2)
def _worker(model, ensemble, told, stamp, asked):
    """What denoises on a worker, which outlives the command; a model that has changed since is loaded again."""
    return pictures.PictureDenoiser(model, tile=None, ensemble=ensemble, load=_load_told if told else None)


def _load_told(name):
    """A Predictor that is told the noise level, also where its model finds one."""
    model = pictures.predictor.load(name)
    return model if model.needs_level else model.with_source("known")
