"""What REST and gRPC share: signatures, and errors that a person can act on."""

import dataclasses
import re

from ssdn_tf.errors import UserError


class ServerError(UserError):
    """A server cannot be reached, refuses a request, or gives an answer that makes no sense.

    transient: the same request may succeed later.
    broken: the connection was lost after the request was sent.
    """

    def __init__(self, sentence, transient=False, broken=False):
        super().__init__(sentence)
        self.transient = transient
        self.broken = broken


@dataclasses.dataclass(frozen=True)
class Signature:
    """inputs, outputs: {name: shape}; a shape is a tuple with -1 for a size that varies, or None for an open rank."""

    inputs: dict
    outputs: dict


class Transport:
    """One model on one server. Subclasses send the requests.

    read_metadata(): the model's SignatureDefMap as a dict.
    predict(signature, inputs, output): see `remote.Server.predict`.
    """

    def __init__(self, address, model, version, timeout):
        self.address = address
        self.model = model
        self.version = version
        self.timeout = timeout

    def signatures(self):
        """{name: Signature}"""
        try:
            found = self.read_metadata()["signature_def"]
            return {name: Signature(_shapes(s, "inputs"), _shapes(s, "outputs")) for name, s in found.items()}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise self.foreign("metadata that does not describe a model") from error

    def error(self, sentence, **kind):
        return ServerError(f"{self.address}: {sentence}.", **kind)

    def unreachable(self, reason, transient=True):
        ports = "TensorFlow Serving listens on port 8501 for REST and on 8500 for gRPC by default"
        return self.error(f"cannot reach the server ({reason}); {ports}", transient=transient)

    def disconnected(self, reason):
        return self.error(f"the connection broke before the answer came ({reason})", transient=True, broken=True)

    def busy(self, reason):
        return self.error(f"the server is busy ({reason})", transient=True)

    def late(self):
        return self.error(f"no answer within {self.timeout:g} s")

    def gave_up(self, reason):
        return self.error(f"the server gave up ({reason}); its --rest_api_timeout_in_ms is 30000 by default")

    def unknown_model(self, reason):
        version = "" if self.version is None else f", version {self.version}"
        return self.error(f"the server has no model '{self.model}'{version} ({reason})")

    def refused(self, reason):
        if re.search("different shapes|Incompatible shapes during merge", reason):
            reason = f"a server that batches requests (--enable_batching) takes pictures of one size only ({reason})"
        return self.error(f"the server refused the request: {reason.removesuffix('.')}")

    def foreign(self, received):
        return self.error(f"expected TensorFlow Serving, received {received}")

    def lacks(self, signature, output):
        return self.error(f"the answer of '{signature}' has no output '{output}'")


def _shapes(signature, which):
    """{name: shape} of the inputs or outputs of a SignatureDef."""
    found = {}
    for name, info in signature.get(which, {}).items():
        shape = info.get("tensor_shape", {})
        sizes = tuple(int(dim.get("size", 0)) for dim in shape.get("dim", []))
        found[name] = None if shape.get("unknown_rank") else sizes
    return found


def readable(text):
    """An error of a TensorFlow graph without where in the graph it occurred.

    '2 root error(s) found.\\n  (0) INVALID_ARGUMENT: assertion failed: [expected 3 channels, received] [2]
    \\n\\t [[{{function_node __inference_f_7972}}{{node Assert/Assert}}]] ...' -> 'expected 3 channels, received [2]'
    """
    text = re.sub(r"^\d+ root error\(s\) found\.\s*\(0\) \w+: ", "", text)
    text = re.sub(r"^\{\{function_node [^}]*\}\}\s*", "", text)
    text = re.sub(r"\s*\[\[\{\{.*", "", text, flags=re.DOTALL)
    # The sentence may itself hold brackets, "[0, 1]" or "[0, 1)".
    sentence = r"((?:[^\[\]]|\[[^\[\]]*\])*|.*?)"
    return re.sub(rf"assertion failed: \[{sentence}\](?=\s|$)", r"\1", text, flags=re.DOTALL).strip()
