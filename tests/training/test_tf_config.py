"""What TF_CONFIG may say."""

import json

import pytest

from ssdn_tf.errors import UserError
from ssdn_tf.training import tf_config


def config(cluster, kind="worker", index=0):
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize(
    ("text", "index"),
    [
        (config({"worker": ["a:1", "b:2"]}), 0),
        (config({"worker": ["a:1", "b:2"]}, index=1), 1),
        (config({"chief": ["a:1"], "worker": ["b:2"]}, "chief"), 0),
        (config({"chief": ["a:1"], "worker": ["b:2"]}), 1),
    ],
)
def test_the_chief_is_worker_0(text, index):
    assert tf_config.parse_task(text) == tf_config.Task(("a:1", "b:2"), index)


@pytest.mark.parametrize(
    "text",
    [
        "no JSON", "[]", "null", "{}", '{"cluster": {}}', config({}), config({"worker": []}), config({"worker": "a:1"}),
        config({"worker": ["a"]}), config({"worker": ["a:0"]}), config({"worker": ["a:70000"]}),
        config({"worker": [1]}), config({"worker": ["a:1"]}, index=1), config({"worker": ["a:1"]}, index="0"),
        config({"worker": ["a:1"]}, ["worker"]), config({"worker": ["a:1"]}, index=-1),
        config({"worker": ["a:1"]}, "ps"), config({"chief": ["a:1", "b:2"], "worker": ["c:3"]}),
    ],
)  # fmt: skip
def test_a_wrong_tf_config_is_a_sentence(text):
    with pytest.raises(UserError, match=r"^TF_CONFIG: expected .*, received .*\.$"):
        tf_config.parse_task(text)
