"""Several workers: how they find each other, and what a worker does when another one is lost.

TensorFlow's coordination service, which runs in worker 0, does both. Every worker sends it heartbeats from a C++
thread, so that a worker that was killed, is suspended or has lost its network is noticed, while one that is only busy
(validation, compilation) is not. Then every collective operation fails in every other worker. TensorFlow cannot set
up its collectives twice in one process, so a worker ends there, and whatever started it starts it again.
"""

import contextlib
import os
import signal
import socket
import sys

from ssdn_tf.errors import UserError

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: another worker is lost, the same command goes on from the last checkpoint
_HEARTBEAT_SECONDS = 30  # without a heartbeat for so long, a worker is lost


def connect(task, wait_seconds):
    """Waits for the other workers.

    Args:
        task: tf_config.Task.
        wait_seconds: how long to wait at most.

    Returns:
        tf.distribute.MultiWorkerMirroredStrategy.

    Raises:
        UserError: a worker did not answer in time, or the port of this one cannot be opened.
    """
    import tensorflow as tf

    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    _configure_coordination(resolver.cluster_spec(), max(1, int(wait_seconds)))
    try:
        # TensorFlow waits in C++, where no handler written in Python runs: the default ones end the process.
        with _default_signals():
            strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except tf.errors.DeadlineExceededError:
        others = [address for worker, address in enumerate(task.addresses) if worker != task.index]
        silent = [address for address in others if not _answers(address)] or others
        raise UserError(
            f"no answer from {', '.join(silent)} within {wait_seconds / 60:g} min; expected all "
            f"{len(task.addresses)} workers of TF_CONFIG. Their own output may say why."
        ) from None
    except tf.errors.UnknownError as error:
        raise UserError(
            f"cannot listen at {task.addresses[task.index]}, the address of this worker in TF_CONFIG: {error.message}."
        ) from None
    # TensorFlow handles SIGTERM from here on, and does nothing on it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return strategy


def _configure_coordination(cluster, wait_seconds):
    """Bounds the wait for the others, and the time until a lost one is noticed. There is no public way to do it."""
    from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
    from tensorflow.python.eager import context

    jobs = [name for name in ("chief", "worker") if name in cluster.jobs]
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader=f"/job:{jobs[0]}/replica:0/task:0",
        cluster_register_timeout_in_ms=1000 * wait_seconds,
        heartbeat_timeout_in_ms=1000 * _HEARTBEAT_SECONDS,
        coordinated_jobs=[CoordinatedJob(name=name, num_tasks=cluster.num_tasks(name)) for name in jobs],
    )
    # Otherwise worker 0 waits for the others without a limit.
    context.context().coordination_service.cluster_register_with_barrier = True


@contextlib.contextmanager
def _default_signals():
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _answers(address):
    """True if something listens at host:port."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def exit_if_another_is_lost():
    """Ends the process with EXIT_CODE and a sentence where an operation fails because another worker is lost."""
    import tensorflow as tf

    try:
        yield
    except (
        tf.errors.UnavailableError,  # killed, or no heartbeat
        tf.errors.DeadlineExceededError,  # worker 0 does not answer
        tf.errors.AbortedError,  # started again before its loss was noticed
        tf.errors.FailedPreconditionError,  # the same, as the other side of a transfer sees it
        tf.errors.CancelledError,  # operations under way at that moment
    ) as error:
        print(
            f"error: another worker is lost ({type(error).__name__}); "
            "start this one again with the same command to go on from the last checkpoint.",
            file=sys.stderr,
        )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_CODE)  # the interpreter's own end would wait for threads that wait for the other worker
