"""The messages of TensorFlow Serving, built with protobuf from the few fields that are used here.

The published stubs (tensorflow-serving-api) import TensorFlow; a client, or a warm-up file, needs
none of it. Names and numbers are those of apis/predict.proto, apis/model.proto,
apis/get_model_metadata.proto, apis/prediction_log.proto and framework/tensor.proto; fields that are
not listed pass through unread. tests/test_protocol.py compares the bytes with the stubs'.
"""

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

_FIELD = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "ssdn_tf.wire"
# message: {field: (number, type)}; [type] is repeated, {type} a map from strings.
_MESSAGES = {
    "Dim": {"size": (1, "int64")},
    "TensorShapeProto": {"dim": (2, ["Dim"]), "unknown_rank": (3, "bool")},
    "TensorProto": {
        "dtype": (1, "int32"),
        "tensor_shape": (2, "TensorShapeProto"),
        "tensor_content": (4, "bytes"),
        "float_val": (5, ["float"]),
        "string_val": (8, ["bytes"]),
    },
    "ModelSpec": {"name": (1, "string"), "version": (2, "google.protobuf.Int64Value"), "signature_name": (3, "string")},
    "PredictRequest": {"model_spec": (1, "ModelSpec"), "inputs": (2, {"TensorProto"})},
    "PredictResponse": {"outputs": (1, {"TensorProto"}), "model_spec": (2, "ModelSpec")},
    "PredictLog": {"request": (1, "PredictRequest")},
    "PredictionLog": {"predict_log": (6, "PredictLog")},
    "TensorInfo": {"name": (1, "string"), "dtype": (2, "int32"), "tensor_shape": (3, "TensorShapeProto")},
    "SignatureDef": {"inputs": (1, {"TensorInfo"}), "outputs": (2, {"TensorInfo"}), "method_name": (3, "string")},
    "SignatureDefMap": {"signature_def": (1, {"SignatureDef"})},
    "Any": {"type_url": (1, "string"), "value": (2, "bytes")},
    "GetModelMetadataRequest": {"model_spec": (1, "ModelSpec"), "metadata_field": (2, ["string"])},
    "GetModelMetadataResponse": {"model_spec": (1, "ModelSpec"), "metadata": (2, {"Any"})},
}
_DTYPES = {1: np.float32, 7: object}  # DT_FLOAT, DT_STRING


def _add_field(message, name, number, kind):
    field = message.field.add(name=name, number=number, label=_FIELD.LABEL_OPTIONAL)
    if isinstance(kind, list):
        field.label, kind = _FIELD.LABEL_REPEATED, kind[0]
    elif isinstance(kind, set):
        field.label, (value,) = _FIELD.LABEL_REPEATED, kind
        kind = "".join(part.capitalize() for part in name.split("_")) + "Entry"
        entry = message.nested_type.add(name=kind)
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string")
        _add_field(entry, "value", 2, value)
        kind = f"{message.name}.{kind}"
    scalar = f"TYPE_{kind.upper()}"
    if scalar in _FIELD.Type.keys():
        field.type = _FIELD.Type.Value(scalar)
    else:
        field.type = _FIELD.TYPE_MESSAGE
        field.type_name = f".{kind}" if kind.startswith("google.") else f".{_PACKAGE}.{kind}"


def _classes():
    wrappers = descriptor_pb2.FileDescriptorProto()
    wrappers_pb2.DESCRIPTOR.CopyToProto(wrappers)
    file = descriptor_pb2.FileDescriptorProto(name="ssdn_tf_wire.proto", package=_PACKAGE, syntax="proto3")
    file.dependency.append(wrappers.name)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            _add_field(message, field, number, kind)
    pool = descriptor_pool.DescriptorPool()  # one of its own, beside whatever TensorFlow has registered
    pool.Add(wrappers)
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in _MESSAGES
    }


globals().update(_classes())  # protocol.PredictRequest, ...


def fill_tensor(tensor, value):
    """Writes an array into a TensorProto.

    Args:
        tensor: TensorProto.
        value: float32 array, or an object array of bytes.

    Raises:
        ValueError: another dtype.
    """
    value = np.asarray(value)
    for size in value.shape:
        tensor.tensor_shape.dim.add(size=size)
    if value.dtype == np.float32:
        tensor.dtype = 1
        tensor.tensor_content = value.tobytes()
    elif value.dtype == object:
        tensor.dtype = 7
        tensor.string_val.extend(value.ravel())
    else:
        raise ValueError(f"fill_tensor takes float32 or bytes. Received: dtype={value.dtype}")


def array(tensor):
    """The array in a TensorProto: float32, or objects that are bytes.

    Raises:
        ValueError: another dtype, or the values do not fill the shape.
    """
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise ValueError(f"expected float32 or strings, received the type number {tensor.dtype}")
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if dtype is object:
        values = np.empty(len(tensor.string_val), object)
        values[:] = list(tensor.string_val)
    elif tensor.tensor_content:
        values = np.frombuffer(tensor.tensor_content, np.float32)
    else:
        values = np.array(tensor.float_val, np.float32)
        if len(values) == 1:  # one value stands for all
            values = np.repeat(values, int(np.prod(shape)))
    return values.reshape(shape)


def predict_request(model, signature, inputs, version=None):
    """PredictRequest for `inputs`, {name: array}; see `fill_tensor`."""
    request = PredictRequest()  # noqa: F821
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    for name, value in inputs.items():
        fill_tensor(request.inputs[name], value)
    return request


def warm_up_record(inputs, signature):
    """Bytes of a PredictionLog, one record of assets.extra/tf_serving_warmup_requests."""
    log = PredictionLog()  # noqa: F821
    log.predict_log.request.CopyFrom(predict_request("", signature, inputs))
    return log.SerializeToString(deterministic=True)
