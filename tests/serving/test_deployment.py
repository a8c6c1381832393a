"""export/serving/, what a deployment of TensorFlow Serving needs, and the curl line of export/README.md."""

import pathlib
import re
import shutil
import subprocess

import absl.flags
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from serving_support import byte_array, random_pixels
from tensorflow_serving.config import model_server_config_pb2

from export import client
from ssdn_tf.data import images

ROOT = pathlib.Path(__file__).parents[2]
SERVING = ROOT / "export" / "serving"
FIELD = descriptor_pb2.FieldDescriptorProto
WRAPPERS = wrappers_pb2.DESCRIPTOR.serialized_pb


def read_config(name, kinds):
    """The message in a text file.

    kinds: {message: {field: (number, type)}}, the last one is the file's. tensorflow-serving-api has no
    class for these; names and numbers are those of the server's .proto files.
    """
    file = descriptor_pb2.FileDescriptorProto(name=name, syntax="proto3", dependency=["google/protobuf/wrappers.proto"])
    for kind, fields in kinds.items():
        message = file.message_type.add(name=kind)
        for field, (number, type_name) in fields.items():
            added = message.field.add(name=field, number=number, label=FIELD.LABEL_OPTIONAL)
            if type_name.startswith("repeated "):
                added.label, type_name = FIELD.LABEL_REPEATED, type_name.removeprefix("repeated ")
            if type_name.startswith("."):
                added.type, added.type_name = FIELD.TYPE_MESSAGE, type_name
            else:
                added.type = FIELD.Type.Value(f"TYPE_{type_name.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(WRAPPERS)
    pool.Add(file)
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName(kind))
    return text_format.Parse((SERVING / name).read_text(), made())


def test_models_config_is_one():
    text = (SERVING / "models.config").read_text()
    (config,) = text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config
    assert (config.name, config.base_path, config.model_platform) == ("ssdn", "/models/ssdn", "tensorflow")
    values = absl.flags.FlagValues()
    client.define(values)
    assert values["model"].default == config.name


def test_batching_config_is_one():
    number = ".google.protobuf.Int64Value"
    names = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")
    fields = {name: (i, number) for i, name in enumerate(names, start=1)}
    config = read_config("batching.config", {"Batching": fields | {"allowed_batch_sizes": (6, "repeated int64")}})
    sizes = list(config.allowed_batch_sizes)
    # What the server asks of them.
    assert sizes == sorted(set(sizes)) and sizes[-1] == config.max_batch_size.value
    assert all(getattr(config, name).value > 0 for name in names)


def test_monitoring_config_is_one():
    inner = {"enable": (1, "bool"), "path": (2, "string")}
    kinds = {"Prometheus": inner, "Monitoring": {"prometheus_config": (1, ".Prometheus")}}
    config = read_config("monitoring.config", kinds)
    assert config.prometheus_config.enable and config.prometheus_config.path.startswith("/monitoring/")


def test_compose_starts_the_official_image_with_files_that_are_there():
    text = (SERVING / "compose.yaml").read_text()
    assert "image: tensorflow/serving:" in text and "\t" not in text
    assert {"127.0.0.1:8500:8500", "127.0.0.1:8501:8501"} == set(re.findall(r'- "(.*)"', text))
    named = re.findall(r"--(\w+)=/config/(\S+)", text)
    assert [flag for flag, _ in named] == ["model_config_file", "monitoring_config_file", "batching_parameters_file"]
    assert all((SERVING / file).is_file() for _, file in named)
    assert re.search(r"^\s+# - --enable_batching=true$", text, re.MULTILINE), "only for clients that send one size"
    assert "- .:/config:ro" in text and re.search(r"- \$\{MODELS:-\S+\}:/models:ro", text)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_the_curl_line_of_the_readme_sends_a_large_picture(double, servables, tmp_path):
    """Beyond the 128 KiB that Linux allows for one argument of a command."""
    (line,) = re.findall(r"```sh\n([^`]*curl[^`]*)```", (ROOT / "export" / "README.md").read_text())
    pixels = random_pixels(200, 300)
    images.write(tmp_path / "noisy.png", pixels)
    assert (tmp_path / "noisy.png").stat().st_size > 128 * 1024
    line = line.replace("http://localhost:8501", double.urls["rest"])
    line = line.replace('"image_bytes"', '"noise_parameter": [0.098], "image_bytes"', 1)  # as the page says below it
    subprocess.run(["bash", "-euo", "pipefail", "-c", line], cwd=tmp_path, check=True, timeout=60)
    inputs = {"image_bytes": byte_array(images.encode_png(pixels)), "noise_parameter": np.float32([0.098])}
    (expected,) = servables["ssdn"][1].run("denoise_png", inputs)["image_bytes"]
    assert (tmp_path / "denoised.png").read_bytes() == expected
