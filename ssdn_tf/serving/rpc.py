"""TensorFlow Serving over gRPC, with grpcio and protobuf."""

import re

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from ssdn_tf.serving import messages, prediction_pb2
from ssdn_tf.serving.transport import Transport, readable

_OPTIONS = {
    "grpc.max_receive_message_length": -1,
    "grpc.max_send_message_length": -1,
    "grpc.initial_reconnect_backoff_ms": 200,
    "grpc.max_reconnect_backoff_ms": 2000,
    "grpc.enable_http_proxy": 0,  # as over REST
}
# What grpcio says when an open connection ends; UNAVAILABLE is also its code for a server that is not there.
_BROKEN = re.compile("socket closed|connection reset|broken pipe|goaway|stream removed", re.IGNORECASE)


class Rpc(Transport):
    """address: grpc://...; target: host:port."""

    def __init__(self, address, target, model, version, timeout):
        super().__init__(address, model, version, timeout)
        self._channel = grpc.insecure_channel(target, options=list(_OPTIONS.items()))

    def read_metadata(self):
        request = prediction_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.CopyFrom(messages.predict_request(self.model, "", {}, self.version).model_spec)
        answer = self._call("GetModelMetadata", request, prediction_pb2.GetModelMetadataResponse)
        try:
            found = prediction_pb2.SignatureDefMap.FromString(answer.metadata["signature_def"].value)
        except DecodeError as error:
            raise ValueError(error) from error
        return json_format.MessageToDict(found, preserving_proto_field_name=True)

    def predict(self, signature, inputs, output):
        request = messages.predict_request(self.model, signature, inputs, self.version)
        answer = self._call("Predict", request, prediction_pb2.PredictResponse)
        if output not in answer.outputs:
            raise self.lacks(signature, output)
        try:
            return messages.to_array(answer.outputs[output])
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
        except grpc.RpcError as error:
            raise self._error(error.code(), readable(error.details() or "")) from error

    def _error(self, code, reason):
        codes = grpc.StatusCode
        if code == codes.UNAVAILABLE:
            if "failed to connect" in reason.lower():
                return self.unreachable(reason)
            return self.disconnected(reason) if _BROKEN.search(reason) else self.busy(reason)
        if code == codes.RESOURCE_EXHAUSTED:
            return self.busy(reason)
        if code == codes.DEADLINE_EXCEEDED:
            return self.late()
        if code == codes.NOT_FOUND:
            return self.unknown_model(reason)
        return self.foreign(f"'{reason}'") if code == codes.UNIMPLEMENTED else self.refused(reason)
