"""A double of TensorFlow Serving's protocol, for tests. It is NOT TensorFlow Serving.

It speaks REST and gRPC on loopback sockets as TensorFlow Serving documents them (the gRPC messages are those of
tensorflow-serving-api) and answers from exported SavedModels in a TensorFlow session. What is modelled on the
server's sources: URLs, row and column format, {"b64": ...}, the suffix _bytes, metadata, status codes, the wording
of errors, and what its batching does with requests that come together. Nothing here tells how fast the server is,
or how it loads. `ModelServer` starts the real one, where its binary is at hand.
"""

import base64
import concurrent.futures
import contextlib
import http.server
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

CODES = grpc.StatusCode
# As http_server.cc maps them; every other code is 500.
HTTP_STATUS = {
    CODES.INVALID_ARGUMENT: 400,
    CODES.FAILED_PRECONDITION: 400,
    CODES.NOT_FOUND: 404,
    CODES.RESOURCE_EXHAUSTED: 429,
    CODES.UNIMPLEMENTED: 501,
    CODES.UNAVAILABLE: 503,
    CODES.DEADLINE_EXCEEDED: 504,
}


# oneDNN prepares its kernels anew in each thread, which takes longer than a small picture.
_WORKERS = concurrent.futures.ThreadPoolExecutor(2)
_SCHEMES = {"rest": "http", "grpc": "grpc"}


class ProtocolError(Exception):
    """A status code and its text."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


def refuse(text, code=CODES.INVALID_ARGUMENT):
    raise ProtocolError(code, text)


class Servable:
    """One version of a model in a TensorFlow session.

    TensorFlow Serving runs models this way too, so shapes are not compared with the signature, and errors of the
    graph have the server's words: 'assertion failed: [...] [[{{function_node ...}}{{node ...}}]]'.
    """

    def __init__(self, path):
        self.session = tf.compat.v1.Session(graph=tf.Graph())
        with self.session.graph.as_default():
            meta_graph = tf.compat.v1.saved_model.load(self.session, ["serve"], str(path))
        self.signatures = dict(meta_graph.signature_def)
        self._functions = {}

    def signature(self, name):
        name = name or "serving_default"
        if name not in self.signatures or name.startswith("__"):
            refuse(f'Serving signature name: "{name}" not found in signature def')
        return name, self.signatures[name]

    def run(self, name, inputs):
        """inputs, and the answer: {name: array}"""
        return _WORKERS.submit(self._run, name, inputs).result()

    def _run(self, name, inputs):
        outputs = self.signatures[name].outputs
        key = (name, *inputs)
        if key not in self._functions:
            feed = [self.signatures[name].inputs[key].name for key in inputs]
            options = config_pb2.CallableOptions(feed=feed, fetch=[info.name for info in outputs.values()])
            self._functions[key] = self.session._make_callable_from_options(options)
        try:
            return dict(zip(outputs, self._functions[key](*inputs.values())))
        except tf.errors.OpError as error:
            refuse(error.message, _code(error.error_code))


def _code(number):
    return next((code for code in CODES if code.value[0] == number), CODES.UNKNOWN)


# ---------------------------------------------------------------- batching


class Batch:
    def __init__(self):
        self.tasks = []  # (inputs, rows, Future)
        self.full = threading.Event()

    @property
    def rows(self):
        return sum(rows for _, rows, _ in self.tasks)


class Batching:
    """Merges requests that come within `seconds`, as the batching session of the server does.

    They are joined along the first dimension, filled up to an allowed size with copies of the first
    row, and share one fate: shapes that differ, or one bad picture, fail them all.
    """

    def __init__(self, run, allowed, seconds):
        self.run_batch = run
        self.allowed = allowed
        self.seconds = seconds
        self.open = {}
        self.lock = threading.Lock()
        self.sizes = []  # of the batches that were run, before filling up

    def run(self, servable, name, inputs):
        rows = self._rows(inputs)
        answer = concurrent.futures.Future()
        with self.lock:
            batch = self.open.get((servable, name))
            leads = batch is None or batch.rows + rows > self.allowed[-1]
            if leads:
                batch = self.open[servable, name] = Batch()
            batch.tasks.append((inputs, rows, answer))
            if batch.rows == self.allowed[-1]:
                batch.full.set()
        if leads:
            batch.full.wait(self.seconds)
            with self.lock:
                if self.open.get((servable, name)) is batch:
                    del self.open[servable, name]
            self._finish(servable, name, batch)
        return answer.result()

    def _rows(self, inputs):
        shapes = [value.shape for value in inputs.values()]
        if not shapes:
            refuse("Batching session Run() must have at least one input tensor", CODES.INTERNAL)
        if not all(shapes):
            refuse("Batching Run() input tensors must have at least one dimension.")
        if len({shape[0] for shape in shapes}) > 1:
            refuse("Batching Run() input tensors must have equal 0th-dimension size.")
        if shapes[0][0] > self.allowed[-1]:
            refuse(f"Task size {shapes[0][0]} is larger than maximum input batch size {self.allowed[-1]}")
        return shapes[0][0]

    def _finish(self, servable, name, batch):
        try:
            outputs = self._outputs(servable, name, batch)
        except ProtocolError as error:
            for _, _, answer in batch.tasks:
                answer.set_exception(ProtocolError(error.code, str(error)))
            return
        begin = 0
        for _, rows, answer in batch.tasks:
            answer.set_result({key: value[begin : begin + rows] for key, value in outputs.items()})
            begin += rows

    def _outputs(self, servable, name, batch):
        self.sizes.append(len(batch.tasks))
        merged = {}
        for key in batch.tasks[0][0]:
            parts = [inputs[key] for inputs, _, _ in batch.tasks]
            if len({part.shape[1:] for part in parts}) > 1:
                # The missing blanks are the server's.
                text = (
                    f"Tensors with name '{key}' from different tasks have different shapes and padding is turned off."
                    "Set pad_variable_length_inputs to true, or ensure that all tensors with the same name"
                    "have equal dimensions starting with the first dim."
                )
                refuse(text, CODES.FAILED_PRECONDITION)
            missing = next(size for size in self.allowed if size >= batch.rows) - batch.rows
            merged[key] = np.concatenate([*parts, *[parts[0][:1]] * missing])
        return self.run_batch(servable, name, merged)


# ---------------------------------------------------------------- tensors


def from_proto(tensor):
    try:
        return tf.make_ndarray(tensor)
    except (ValueError, TypeError) as error:
        refuse(f"tensor parsing error: {error}")


def to_proto(array):
    """As Tensor::AsProtoField: values in the fields of their type."""
    dtype = tf.as_dtype(array.dtype)
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    values = array.ravel().tolist()
    if dtype == tf.string:
        proto.string_val.extend(values)
    elif dtype == tf.float32:
        proto.float_val.extend(values)
    else:
        raise NotImplementedError(dtype)
    return proto


def from_json(value, info):
    """Nested lists of numbers, strings or {"b64": ...}, as an array of the input's type."""
    if info.dtype == types_pb2.DT_STRING:
        flat, shape = [], []
        _flatten(value, flat, shape, 0)
        array = np.empty(len(flat), object)
        array[:] = flat
        return array.reshape(shape)
    try:
        return np.array(value, tf.as_dtype(info.dtype).as_numpy_dtype)
    except (ValueError, TypeError):
        refuse(f"JSON Value: {json.dumps(value)[:100]} is not of expected type: {types_pb2.DataType.Name(info.dtype)}")


def _flatten(value, flat, shape, level):
    if isinstance(value, list):
        if len(shape) == level:
            shape.append(len(value))
        if shape[level] != len(value):
            refuse(f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}")
        for part in value:
            _flatten(part, flat, shape, level + 1)
    elif isinstance(value, dict):
        try:
            flat.append(base64.b64decode(value["b64"], validate=True))
        except (KeyError, ValueError, TypeError):
            refuse("Unable to base64 decode")
    else:
        flat.append(str(value).encode())


def to_json(name, array):
    if array.dtype != object:
        return array.tolist()
    binary = name.endswith("_bytes")
    if array.ndim:
        return [to_json(name, np.asarray(part, object)) for part in array]
    value = array.item()
    return {"b64": base64.b64encode(value).decode()} if binary else value.decode("utf-8", "replace")


# ---------------------------------------------------------------- the server


class ProtocolDouble:
    """REST and gRPC on two free ports, as a context manager.

    Args:
        models: {name: {version: Servable}}, see `load`.
        batching: None, or (allowed batch sizes, seconds of the window).
        ports: {"rest": port, "grpc": port}, those of one that has ended; None for free ones.

    Knobs, to be set while it runs:
        drop: so many connections (REST) or calls (gRPC) are cut off.
        busy: so many requests are answered with UNAVAILABLE (503).
        change: function ({output: array}) -> the same, of wrong answers.
        delay: seconds that an answer takes.

    Records: requests (signature, {input: array}), peak (most requests at work together).
    """

    def __init__(self, models, batching=None, ports=None):
        self.models = models
        self.ports = ports or {"rest": 0, "grpc": 0}
        self.batching = Batching(Servable.run, *batching) if batching else None
        self.run = self.batching.run if batching else lambda servable, *request: servable.run(*request)
        self.drop = self.busy = self.at_work = self.peak = 0
        self.delay = 0.0
        self.change = None
        self.requests = []
        self.lock = threading.Lock()

    def __enter__(self):
        self.rest = _RestServer(("127.0.0.1", self.ports["rest"]), _RestHandler)
        self.rest.double = self
        threading.Thread(target=self.rest.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.grpc = grpc.server(concurrent.futures.ThreadPoolExecutor(16), options=options)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_GrpcService(self), self.grpc)
        grpc_port = self.grpc.add_insecure_port(f"127.0.0.1:{self.ports['grpc']}")
        self.grpc.start()
        self.ports = {"rest": self.rest.server_address[1], "grpc": grpc_port}
        self.urls = {kind: f"{scheme}://127.0.0.1:{self.ports[kind]}" for kind, scheme in _SCHEMES.items()}
        return self

    def __exit__(self, *_):
        self.rest.shutdown()
        self.rest.server_close()
        self.grpc.stop(None).wait()

    def takes(self, knob):
        """True, and one less, while a counter is above 0."""
        with self.lock:
            left = getattr(self, knob)
            setattr(self, knob, max(left - 1, 0))
        return left > 0

    def servable(self, name, version=None):
        versions = self.models.get(name, {})
        if not versions or version not in (None, *versions):
            which = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            refuse(f"Servable not found for request: {which}", CODES.NOT_FOUND)
        version = max(versions) if version is None else version
        return version, versions[version]

    def predict(self, servable, signature, inputs):
        """{name: array} -> {name: array}, through the knobs and the batching."""
        if self.takes("busy"):
            refuse("The batch scheduling queue to which this task was submitted is full", CODES.UNAVAILABLE)
        with self.counted(signature, inputs):
            time.sleep(self.delay)
            outputs = self.run(servable, signature, inputs)
            return self.change(outputs) if self.change else outputs

    @contextlib.contextmanager
    def counted(self, signature, inputs):
        with self.lock:
            self.requests.append((signature, inputs))
            self.at_work += 1
            self.peak = max(self.peak, self.at_work)
        try:
            yield
        finally:
            with self.lock:
                self.at_work -= 1


def load(folder):
    """{version: Servable} of the folder of a model."""
    return {int(path.name): Servable(path) for path in pathlib.Path(folder).iterdir() if path.name.isdigit()}


class _GrpcService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, double):
        self.double = double

    def Predict(self, request, context):  # noqa: N802
        with self._errors(context):
            servable, version = self._servable(request)
            name, signature = servable.signature(request.model_spec.signature_name)
            missing = sorted(set(signature.inputs) - set(request.inputs))
            extra = sorted(set(request.inputs) - set(signature.inputs))
            if missing or extra:
                refuse(
                    f"input size does not match signature: {len(request.inputs)}!={len(signature.inputs)}. "
                    f"Sent extra: {{{','.join(extra)}}}. Missing but required: {{{','.join(missing)}}}."
                )
            for key, tensor in request.inputs.items():
                if tensor.dtype != signature.inputs[key].dtype:
                    refuse(f"input {key} has the wrong type {types_pb2.DataType.Name(tensor.dtype)}")
            inputs = {key: from_proto(tensor) for key, tensor in request.inputs.items()}
            response = predict_pb2.PredictResponse()
            self._name(response.model_spec, request, version)
            response.model_spec.signature_name = name
            for key, value in self.double.predict(servable, name, inputs).items():
                response.outputs[key].CopyFrom(to_proto(value))
            return response

    def GetModelMetadata(self, request, context):  # noqa: N802
        with self._errors(context):
            if list(request.metadata_field) != ["signature_def"]:
                refuse("GetModelMetadataRequest must specify at least one metadata_field")
            servable, version = self._servable(request)
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            self._name(response.model_spec, request, version)
            response.metadata["signature_def"].Pack(signature_map(servable))
            return response

    @contextlib.contextmanager
    def _errors(self, context):
        if self.double.takes("drop"):
            context.abort(CODES.UNAVAILABLE, "Socket closed")
        try:
            yield
        except ProtocolError as error:
            context.abort(error.code, str(error))

    def _servable(self, request):
        spec = request.model_spec
        version, servable = self.double.servable(spec.name, spec.version.value if spec.HasField("version") else None)
        return servable, version

    @staticmethod
    def _name(spec, request, version):
        spec.name = request.model_spec.name
        spec.version.value = version


def signature_map(servable):
    message = get_model_metadata_pb2.SignatureDefMap()
    for name, signature in servable.signatures.items():
        message.signature_def[name].CopyFrom(signature)
    return message


class _RestServer(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def verify_request(self, request, client_address):
        return not self.double.takes("drop")


class _RestHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    _PREDICT = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?:predict")
    _ABOUT = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?(/metadata)?")

    def log_message(self, *_):
        pass

    def do_POST(self):  # noqa: N802
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(lambda: self._predict(body))

    def do_GET(self):  # noqa: N802
        self._answer(self._about)

    def _answer(self, make):
        try:
            status, content = 200, make()
        except ProtocolError as error:
            status, content = HTTP_STATUS.get(error.code, 500), {"error": str(error)}
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has hung up
            self.wfile.write(data)

    def _matched(self, pattern):
        """(match, version, Servable)."""
        match = pattern.fullmatch(self.path)
        if not match:
            refuse(f"Malformed request: {self.command} {self.path}")
        version = int(match[2]) if match[2] else None
        return match, *self.server.double.servable(match[1], version)

    def _about(self):
        match, version, servable = self._matched(self._ABOUT)
        if not match[3]:
            status = {"error_code": "OK", "error_message": ""}
            return {"model_version_status": [{"version": str(version), "state": "AVAILABLE", "status": status}]}
        content = json_format.MessageToDict(
            signature_map(servable), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        spec = {"name": match[1], "signature_name": "", "version": str(version)}
        return {"model_spec": spec, "metadata": {"signature_def": content}}

    def _predict(self, body):
        _, _, servable = self._matched(self._PREDICT)
        try:
            request = json.loads(body)
        except ValueError as error:
            refuse(f"JSON Parse error: {error}")
        if not isinstance(request, dict):
            refuse("JSON Value: Is not object")
        name, signature = servable.signature(request.get("signature_name"))
        if not signature.inputs:
            refuse(f"Failed to get input map for signature: {name}")
        if ("instances" in request) == ("inputs" in request):
            refuse("Missing 'inputs' or 'instances' key, or both are there")
        rows = "instances" in request
        inputs = (_rows if rows else _columns)(request["instances" if rows else "inputs"], signature.inputs)
        outputs = self.server.double.predict(servable, name, inputs)
        if not rows:
            values = {key: to_json(key, value) for key, value in outputs.items()}
            return {"outputs": values if len(values) > 1 else next(iter(values.values()))}
        if len({len(value) for value in outputs.values()}) > 1:
            refuse("an output has an inconsistent batch size")
        columns = {key: to_json(key, value) for key, value in outputs.items()}
        if len(columns) == 1:
            return {"predictions": next(iter(columns.values()))}
        return {"predictions": [dict(zip(columns, row)) for row in zip(*columns.values())]}


def _is_object(value):
    return isinstance(value, dict) and set(value) != {"b64"}


def _columns(value, infos):
    if not _is_object(value):
        if len(infos) > 1:
            refuse("inputs is a plain value/list, but expecting an object as multiple input tensors required")
        value = {next(iter(infos)): value}
    for name in infos:
        if name not in value:
            refuse(f"Missing named input: {name} in 'inputs' object.")
    return {name: from_json(value[name], info) for name, info in infos.items()}


def _rows(value, infos):
    if not isinstance(value, list) or not value:
        refuse("No values in 'instances' array")
    if not _is_object(value[0]):
        if len(infos) > 1:
            refuse("instances is a plain list, but expecting list of objects as multiple input tensors required")
        value = [{next(iter(infos)): row} for row in value]
    for number, row in enumerate(value):
        if not _is_object(row) or set(row) != set(infos):
            refuse(f"Failed to process element: {number} of 'instances' list. keys must be equal to: {','.join(infos)}")
    return {name: from_json([row[name] for row in value], info) for name, info in infos.items()}


# ---------------------------------------------------------------- the real server


BINARY = os.environ.get("SSDN_MODEL_SERVER") or shutil.which("tensorflow_model_server")


class ModelServer:
    """TensorFlow Serving's binary, as a context manager that gives its addresses.

    Args:
        folders: {model: folder of its versions}.
        place: folder for the configuration.
    """

    def __init__(self, folders, place):
        self.models = list(folders)
        self.ports = {"rest": free_port(), "grpc": free_port()}
        entries = [
            f'config {{ name: "{n}" base_path: "{p}" model_platform: "tensorflow" }}' for n, p in folders.items()
        ]
        config = place / "models.config"
        config.write_text(f"model_config_list {{ {' '.join(entries)} }}")
        ports = [f"--port={self.ports['grpc']}", f"--rest_api_port={self.ports['rest']}"]
        self.command = [BINARY, *ports, f"--model_config_file={config}"]

    def __enter__(self):
        self.process = subprocess.Popen(self.command)
        rest = f"http://127.0.0.1:{self.ports['rest']}"
        for name in self.models:
            _wait_for(f"{rest}/v1/models/{name}", b"AVAILABLE")
        return {"rest": rest, "grpc": f"grpc://127.0.0.1:{self.ports['grpc']}"}

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def _wait_for(url, text, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(url) as response:
            if text in response.read():
                return
        time.sleep(0.2)
    raise TimeoutError(url)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
