"""Our messages against those of tensorflow-serving-api, byte for byte."""

import numpy as np
import pytest

from ssdn_tf.serving import messages, prediction_pb2

pytest.importorskip("tensorflow_serving")
import tensorflow as tf  # noqa: E402
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_log_pb2  # noqa: E402

INPUTS = {
    "noisy": np.random.default_rng(0).random((2, 3, 5, 3), dtype=np.float32),
    "noise_parameter": np.float32([0.1, 0.2]),
    "image_bytes": np.array([b"\x89PNG", b""], object),
}


def theirs(version=None):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "ssdn"
    request.model_spec.signature_name = "posterior"
    if version is not None:
        request.model_spec.version.value = version
    for name, value in INPUTS.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def as_bytes(message):
    return message.SerializeToString(deterministic=True)


@pytest.mark.parametrize("version", [None, 3])
def test_requests_have_the_bytes_of_the_published_messages(version):
    ours = messages.predict_request("ssdn", "posterior", INPUTS, version)
    assert as_bytes(ours) == as_bytes(theirs(version))
    assert as_bytes(ours) != as_bytes(theirs(4))


def test_warm_up_records_are_read_by_the_published_messages():
    log = prediction_log_pb2.PredictionLog.FromString(messages.warm_up_record(INPUTS, "posterior"))
    assert log.predict_log.request.model_spec.signature_name == "posterior"
    for name, value in INPUTS.items():
        np.testing.assert_array_equal(tf.make_ndarray(log.predict_log.request.inputs[name]), value)


@pytest.mark.parametrize("value", [*INPUTS.values(), np.float32(0.5), np.zeros((0, 3), np.float32)])
def test_answers_are_read_as_they_were_written(value):
    response = predict_pb2.PredictResponse()
    response.outputs["denoised"].CopyFrom(tf.make_tensor_proto(value))
    ours = prediction_pb2.PredictResponse.FromString(response.SerializeToString())
    found = messages.to_array(ours.outputs["denoised"])
    assert found.shape == np.shape(value) and found.dtype == np.asarray(value).dtype
    np.testing.assert_array_equal(found, value)


def test_one_value_stands_for_all():
    tensor = prediction_pb2.TensorProto(dtype=1, float_val=[0.5])
    tensor.tensor_shape.dim.add(size=3)
    assert messages.to_array(tensor).tolist() == [0.5, 0.5, 0.5]


def test_other_types_and_broken_shapes_are_refused():
    with pytest.raises(ValueError, match="takes float32 or bytes"):
        messages.fill_tensor(prediction_pb2.TensorProto(), np.arange(3))
    with pytest.raises(ValueError, match="type number 3"):
        messages.to_array(prediction_pb2.TensorProto(dtype=3))
    tensor = prediction_pb2.TensorProto(dtype=1, tensor_content=b"\0" * 8)
    tensor.tensor_shape.dim.add(size=3)
    with pytest.raises(ValueError):
        messages.to_array(tensor)


def test_metadata_is_read():
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    signatures = get_model_metadata_pb2.SignatureDefMap()
    info = signatures.signature_def["denoise_png"].inputs["image_bytes"]
    info.dtype, info.name = 7, "image_bytes:0"
    info.tensor_shape.dim.add(size=-1)
    response.metadata["signature_def"].Pack(signatures)
    ours = prediction_pb2.GetModelMetadataResponse.FromString(response.SerializeToString())
    found = prediction_pb2.SignatureDefMap.FromString(ours.metadata["signature_def"].value)
    read = found.signature_def["denoise_png"].inputs["image_bytes"]
    assert (read.dtype, read.name, [dim.size for dim in read.tensor_shape.dim]) == (7, "image_bytes:0", [-1])
