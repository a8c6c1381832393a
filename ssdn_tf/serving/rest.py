"""TensorFlow Serving over REST, with the standard library and NumPy alone."""

import base64
import http.client
import json
import urllib.parse

import numpy as np

from ssdn_tf.serving.transport import Transport, readable


class Rest(Transport):
    """Opens a connection for each call, so threads share nothing.

    address: http:// or https://; `parts` and `port` are what urllib.parse found in it.
    """

    def __init__(self, address, parts, port, model, version, timeout):
        super().__init__(address, model, version, timeout)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connect = lambda: kind(parts.hostname, port, timeout=timeout)
        which = f"/versions/{version}" if version is not None else ""
        self._path = f"{parts.path.rstrip('/')}/v1/models/{urllib.parse.quote(model, safe='')}{which}"

    def read_metadata(self):
        answer = self._exchange("GET", f"{self._path}/metadata")
        return answer["metadata"]["signature_def"]

    def predict(self, signature, inputs, output):
        body = {"signature_name": signature, "inputs": {name: _to_json(array) for name, array in inputs.items()}}
        answer = self._exchange("POST", f"{self._path}:predict", json.dumps(body).encode())
        try:
            outputs = answer["outputs"]
            # The server leaves the name out where there is only one output.
            value = outputs[output] if isinstance(outputs, dict) and "b64" not in outputs else outputs
        except (KeyError, TypeError) as error:
            raise self.lacks(signature, output) from error
        try:
            return _from_json(value)
        except (KeyError, TypeError, ValueError) as error:
            raise self.foreign(f"an output '{output}' that cannot be read") from error

    def _exchange(self, method, path, body=None):
        """The JSON of an answer with status 200."""
        connection = self._connect()
        try:
            connection.request(method, path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            status, data = response.status, response.read()
        except TimeoutError as error:
            raise self.late() from error
        except ConnectionRefusedError as error:
            raise self.unreachable(error.strerror or error) from error
        except (ConnectionError, http.client.IncompleteRead) as error:
            raise self.disconnected(getattr(error, "strerror", None) or error) from error
        except (OSError, http.client.HTTPException) as error:
            raise self.unreachable(getattr(error, "strerror", None) or repr(error), transient=False) from error
        finally:
            connection.close()
        try:
            answer = json.loads(data)
        except ValueError as error:
            if status in (502, 503):  # from a proxy
                raise self.busy(f"status {status}") from error
            raise self.foreign(f"status {status} without JSON") from error
        if status != 200:
            raise self._error(status, answer)
        return answer

    def _error(self, status, answer):
        reason = readable(str(answer.get("error", answer))) if isinstance(answer, dict) else str(answer)
        if status in (429, 502, 503):
            return self.busy(reason)
        if status == 504:
            return self.gave_up(reason)
        return self.unknown_model(reason) if status == 404 else self.refused(reason)


def _to_json(array):
    if array.dtype != object:
        return array.tolist()
    if array.ndim:
        return [_to_json(np.asarray(part, object)) for part in array]
    return {"b64": base64.b64encode(array.item()).decode()}


def _from_json(value):
    """float32, or objects that are bytes: strings come as such, or as {"b64": ...} where the name ends in _bytes."""
    if not value or not isinstance(value[0], dict | str):
        return np.array(value, np.float32)
    array = np.empty(len(value), object)
    array[:] = [part.encode() if isinstance(part, str) else base64.b64decode(part["b64"]) for part in value]
    return array
