"""A model behind TensorFlow Serving, over REST or gRPC. Loads neither TensorFlow nor Keras.

    server = remote.connect("http://localhost:8501", "ssdn")       or grpc://localhost:8500
    server.signatures()                                            inputs and outputs of the model
    server.predict("denoise_png", {"image_bytes": array}, "image_bytes")

REST needs the standard library, gRPC the packages grpcio and protobuf. Several threads may share a Server.
"""

import math
import random
import time
import urllib.parse

from ssdn_tf.errors import optional
from ssdn_tf.serving.rest import Rest
from ssdn_tf.serving.transport import ServerError, Signature

__all__ = ["Server", "ServerError", "Signature", "connect"]

# Seconds before the second attempt; each further pause is twice as long, up to the second number.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0


def connect(address, model, version=None, timeout=120.0, retries=5):
    """The client of one model. Sends nothing yet.

    Args:
        address: http://HOST[:PORT][/PATH], https://..., or grpc://HOST[:PORT].
        model: its name on the server.
        version: a number; None for the newest.
        timeout: seconds to wait for one answer.
        retries: how often to repeat a request that failed for a passing reason.

    Raises:
        ValueError: `address` is no such address.
        UserError: gRPC is not installed.
    """
    wrong = ValueError(f"expected http://HOST:PORT or grpc://HOST:PORT, received '{address}'.")
    try:
        parts = urllib.parse.urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("http", "https", "grpc") or not host or parts.query or parts.fragment:
        raise wrong
    if parts.scheme != "grpc":
        return Server(Rest(address, parts, port, model, version, timeout), retries)
    if parts.path.strip("/"):
        raise wrong
    with optional(f"{address} needs the package grpcio", "serving", "; http:// works without it"):
        from ssdn_tf.serving.rpc import Rpc
    target = f"{f'[{host}]' if ':' in host else host}:{port or 8500}"
    return Server(Rpc(address, target, model, version, timeout), retries)


class Server:
    """A model behind a transport; see `connect`."""

    def __init__(self, transport, retries):
        self.transport = transport
        self.retries = retries

    def signatures(self):
        """{name: Signature}.

        Raises:
            ServerError: the server cannot be reached, or does not have the model.
        """
        return self._retry(self.transport.signatures)

    def predict(self, signature, inputs, output):
        """One output of a signature.

        Args:
            signature: its name.
            inputs: {name: array of float32, or of bytes with dtype object}.
            output: name of the output.

        Returns:
            array of float32, or of bytes with dtype object.

        Raises:
            ServerError: the server cannot be reached, refuses the request, or its answer lacks the output. A
                connection that breaks twice is not tried again: the request may be what ends the server.
        """
        return self._retry(lambda: self.transport.predict(signature, inputs, output), most_broken=2)

    def _retry(self, call, most_broken=math.inf):
        """Repeats a call that fails for a passing reason, at growing intervals.

        The intervals are random, so clients that failed together do not come back together.
        """
        broken = 0
        for attempt in range(self.retries + 1):
            try:
                return call()
            except ServerError as error:
                broken += error.broken
                if broken >= most_broken:
                    raise ServerError(
                        f"{self.transport.address}: the connection broke {broken} times during the same request. "
                        "This request may be what ended the server, which may lack the memory for it; send a smaller "
                        "one, or fewer at a time."
                    ) from error
                if not error.transient:
                    raise
                if attempt == self.retries:
                    raise ServerError(f"{error} Tried {attempt + 1} times." if attempt else str(error)) from error
            time.sleep(random.uniform(0.5, 1.0) * min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE))
