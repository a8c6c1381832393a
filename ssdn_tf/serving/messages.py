"""NumPy arrays to and from the messages of TensorFlow Serving (prediction.proto). Needs protobuf, not TensorFlow."""

import numpy as np

from ssdn_tf.serving import prediction_pb2

_DTYPES = {1: np.float32, 7: object}  # DT_FLOAT, DT_STRING


def fill_tensor(tensor, value):
    """Writes an array into a TensorProto.

    Args:
        tensor: TensorProto, empty.
        value: float32 array, or an object array of bytes, of any shape.

    Raises:
        ValueError: `value` has another dtype.
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


def to_array(tensor):
    """The array in a TensorProto: float32, or objects that are bytes.

    Raises:
        ValueError: the tensor has another dtype, or its values do not fill its shape.
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
        if len(values) == 1:  # TensorProto writes a constant tensor as one value
            values = np.repeat(values, int(np.prod(shape)))
    return values.reshape(shape)


def predict_request(model, signature, inputs, version=None):
    """A PredictRequest for `inputs`, {name: array}; see `fill_tensor`. version: None for the newest."""
    request = prediction_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    for name, value in inputs.items():
        fill_tensor(request.inputs[name], value)
    return request


def warm_up_record(inputs, signature):
    """Bytes of a PredictionLog, one record of assets.extra/tf_serving_warmup_requests."""
    log = prediction_pb2.PredictionLog()
    log.predict_log.request.CopyFrom(predict_request("", signature, inputs))
    return log.SerializeToString(deterministic=True)
