"""A model behind TensorFlow Serving, over REST or gRPC. Loads neither TensorFlow nor Keras.

    server = remote.connect("http://localhost:8501", "ssdn")       or grpc://localhost:8500
    server.signatures()                                            what the model takes and gives
    server.predict("denoise_png", {"image_bytes": array}, "image_bytes")

REST needs the standard library, gRPC the package grpcio. All calls may be made
from several threads, and only read: whatever failed may be tried again.
"""

import base64
import dataclasses
import http.client
import json
import random
import re
import time
import urllib.parse

import numpy as np
from google.protobuf import json_format
from google.protobuf import message as protobuf

from ssdn_tf.errors import UserError
from ssdn_tf.serving import messages

# Seconds before the second try; each further pause is twice as long, up to the second number.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0


class ServerError(UserError):
    """A server that is away, refuses, or answers what it should not.

    transient: the same call may succeed later.
    """

    def __init__(self, sentence, transient=False):
        super().__init__(sentence)
        self.transient = transient


@dataclasses.dataclass(frozen=True)
class Signature:
    """inputs, outputs: {name: shape}, a tuple with -1 for what may vary, or None where all may."""

    inputs: dict
    outputs: dict


def connect(address, model, version=None, timeout=120.0, retries=5):
    """The client of one model; nothing is sent yet.

    Args:
        address: http://HOST[:PORT][/PATH], https://..., or grpc://HOST[:PORT].
        model: name under which the server knows it.
        version: a number; None for the newest.
        timeout: seconds that one answer may take.
        retries: how often a call is repeated that failed for a passing reason.

    Raises:
        UserError: no such address, or gRPC is not installed.
    """
    wrong = UserError(f"--server: expected http://HOST:PORT or grpc://HOST:PORT, received '{address}'.")
    try:
        parts = urllib.parse.urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("http", "https", "grpc") or not host or parts.query or parts.fragment:
        raise wrong
    if parts.scheme == "grpc":
        if parts.path.strip("/"):
            raise wrong
        transport = _Grpc(address, f"{f'[{host}]' if ':' in host else host}:{port or 8500}", model, version, timeout)
    else:
        transport = _Rest(address, parts, port, model, version, timeout)
    return Server(transport, retries)


class Server:
    """A model behind a transport; see `connect`."""

    def __init__(self, transport, retries):
        self.transport = transport
        self.retries = retries

    def signatures(self):
        """{name: Signature}.

        Raises:
            ServerError: the server is away, or does not have the model.
        """
        return self._persist(self.transport.signatures)

    def predict(self, signature, inputs, output):
        """One output of a signature.

        Args:
            signature: its name.
            inputs: {name: array of float32, or of bytes with dtype object}.
            output: name of the output.

        Returns:
            array of float32, or of bytes with dtype object.

        Raises:
            ServerError: the server is away, refuses the request, or its answer lacks the output.
        """
        return self._persist(lambda: self.transport.predict(signature, inputs, output))

    def _persist(self, call):
        """Repeats a call that fails for a passing reason, at growing intervals.

        The intervals are drawn, so that clients that failed together do not come back together.
        """
        for attempt in range(self.retries + 1):
            try:
                return call()
            except ServerError as error:
                if not error.transient:
                    raise
                if attempt == self.retries:
                    raise ServerError(f"{error} Tried {attempt + 1} times." if attempt else str(error)) from error
            time.sleep(random.uniform(0.5, 1.0) * min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE))


class _Transport:
    """What REST and gRPC have in common: the sentences, and the reading of the metadata.

    describe: the SignatureDefMap of the model, as JSON.
    predict: see `Server.predict`.
    """

    def __init__(self, address, model, version, timeout):
        self.address = address
        self.model = model
        self.version = version
        self.timeout = timeout

    def signatures(self):
        try:
            found = self.describe()["signature_def"]
            return {name: Signature(_shapes(s, "inputs"), _shapes(s, "outputs")) for name, s in found.items()}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise self.foreign("an answer that does not describe a model") from error

    def away(self, reason, transient=True):
        ports = "TensorFlow Serving has REST at port 8501 and gRPC at 8500, unless told otherwise"
        return ServerError(f"{self.address}: expected a server, received '{reason}' ({ports}).", transient)

    def busy(self, reason):
        return ServerError(f"{self.address}: expected an answer, received '{reason}'.", transient=True)

    def late(self):
        return ServerError(f"{self.address}: expected an answer within --timeout={self.timeout:g} s, received none.")

    def late_there(self, reason):
        limit = "its --rest_api_timeout_in_ms is 30000 unless told otherwise"
        return ServerError(f"{self.address}: expected an answer, received '{reason}' ({limit}).")

    def unknown_model(self, reason):
        which = self.model if self.version is None else f"{self.model}, version {self.version}"
        return ServerError(f"--model: expected a model that {self.address} serves, received '{which}' ({reason}).")

    def refused(self, reason):
        if re.search("different shapes|Incompatible shapes during merge", reason):
            hint = "expected requests of one size where the server batches them (--enable_batching), received several"
            return ServerError(f"{self.address} refuses the request: {hint} ({reason}).")
        return ServerError(f"{self.address} refuses the request: {reason}")

    def foreign(self, reason):
        return ServerError(f"{self.address}: expected TensorFlow Serving, received {reason}.")

    def lacking(self, signature, output):
        return ServerError(
            f"{self.address}: expected the output '{output}' of '{signature}', received none of that name."
        )


def _shapes(signature, which):
    """{name: shape} of the inputs or outputs of a SignatureDef."""
    found = {}
    for name, info in signature.get(which, {}).items():
        shape = info.get("tensor_shape", {})
        sizes = tuple(int(dim.get("size", 0)) for dim in shape.get("dim", []))
        found[name] = None if shape.get("unknown_rank") else sizes
    return found


def _sentence(text):
    """What a graph says, without where in the graph it says it."""
    text = re.sub(r"\s*\[\[\{\{node .*", "", text, flags=re.DOTALL)
    return re.sub(r"assertion failed: \[(.*?)\](?= |$)", r"\1", text).strip()


# ---------------------------------------------------------------- REST


class _Rest(_Transport):
    """Standard library only; a connection for each call, so that threads share nothing."""

    def __init__(self, address, parts, port, model, version, timeout):
        super().__init__(address, model, version, timeout)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._open = lambda: kind(parts.hostname, port, timeout=timeout)
        which = f"/versions/{version}" if version is not None else ""
        self._path = f"{parts.path.rstrip('/')}/v1/models/{urllib.parse.quote(model, safe='')}{which}"

    def describe(self):
        answer = self._exchange("GET", f"{self._path}/metadata")
        return answer["metadata"]["signature_def"]

    def predict(self, signature, inputs, output):
        body = {"signature_name": signature, "inputs": {name: _to_json(array) for name, array in inputs.items()}}
        answer = self._exchange("POST", f"{self._path}:predict", json.dumps(body).encode())
        try:
            outputs = answer["outputs"]
            # The name is left out where there is only one.
            value = outputs[output] if isinstance(outputs, dict) and "b64" not in outputs else outputs
        except (KeyError, TypeError) as error:
            raise self.lacking(signature, output) from error
        try:
            return _from_json(value)
        except (KeyError, TypeError, ValueError) as error:
            raise self.foreign(f"an output '{output}' that cannot be read") from error

    def _exchange(self, method, path, body=None):
        """The JSON of an answer with status 200."""
        connection = self._open()
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            status, data = response.status, response.read()
        except TimeoutError as error:
            raise self.late() from error
        except (ConnectionError, http.client.IncompleteRead) as error:
            raise self.away(getattr(error, "strerror", None) or error) from error
        except (OSError, http.client.HTTPException) as error:
            raise self.away(getattr(error, "strerror", None) or repr(error), transient=False) from error
        finally:
            connection.close()
        try:
            answer = json.loads(data)
        except ValueError as error:
            if status in (502, 503):  # of what stands before the server
                raise self.busy(f"status {status}") from error
            raise self.foreign(f"status {status} and no JSON") from error
        if status != 200:
            raise self._error(status, answer)
        return answer

    def _error(self, status, answer):
        reason = _sentence(str(answer.get("error", answer))) if isinstance(answer, dict) else str(answer)
        if status in (429, 502, 503):
            return self.busy(reason)
        if status == 504:
            return self.late_there(reason)
        return self.unknown_model(reason) if status == 404 else self.refused(reason)


def _to_json(array):
    if array.dtype == object:
        return [{"b64": base64.b64encode(value).decode()} for value in array]
    return array.tolist()


def _from_json(value):
    if value and isinstance(value[0], dict):
        array = np.empty(len(value), object)
        array[:] = [base64.b64decode(part["b64"]) for part in value]
        return array
    return np.array(value, np.float32)


# ---------------------------------------------------------------- gRPC


class _Grpc(_Transport):
    """With grpcio, and the messages of `protocol`."""

    def __init__(self, address, target, model, version, timeout):
        super().__init__(address, model, version, timeout)
        try:
            import grpc
        except ImportError as error:
            raise UserError(
                f"--server={address}: expected the package grpcio, received an installation without it "
                "(pip install 'ssdn_tf[serving]'); http:// works without it."
            ) from error
        self._codes = grpc.StatusCode
        self._error_class = grpc.RpcError
        options = {
            "grpc.max_receive_message_length": -1,
            "grpc.max_send_message_length": -1,
            "grpc.initial_reconnect_backoff_ms": 200,
            "grpc.max_reconnect_backoff_ms": 2000,
            "grpc.enable_http_proxy": 0,  # as over REST
        }
        self._channel = grpc.insecure_channel(target, options=list(options.items()))

    def describe(self):
        request = messages.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.CopyFrom(messages.predict_request(self.model, "", {}, self.version).model_spec)
        answer = self._call("GetModelMetadata", request, messages.GetModelMetadataResponse)
        try:
            found = messages.SignatureDefMap.FromString(answer.metadata["signature_def"].value)
        except protobuf.DecodeError as error:
            raise ValueError(error) from error
        return json_format.MessageToDict(found, preserving_proto_field_name=True)

    def predict(self, signature, inputs, output):
        request = messages.predict_request(self.model, signature, inputs, self.version)
        answer = self._call("Predict", request, messages.PredictResponse)
        if output not in answer.outputs:
            raise self.lacking(signature, output)
        try:
            return messages.array(answer.outputs[output])
        except ValueError as error:
            raise self.foreign(f"an output '{output}' that cannot be read") from error

    def _call(self, method, request, answer):
        call = self._channel.unary_unary(
            f"/tensorflow.serving.PredictionService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        try:
            return call(request, timeout=self.timeout)
        except self._error_class as error:
            raise self._error(error.code(), _sentence(error.details() or "")) from error

    def _error(self, code, reason):
        codes = self._codes
        if code == codes.UNAVAILABLE:
            return self.away(reason)
        if code == codes.RESOURCE_EXHAUSTED:
            return self.busy(reason)
        if code == codes.DEADLINE_EXCEEDED:
            return self.late()
        if code == codes.NOT_FOUND:
            return self.unknown_model(reason)
        return self.foreign(f"'{reason}'") if code == codes.UNIMPLEMENTED else self.refused(reason)
