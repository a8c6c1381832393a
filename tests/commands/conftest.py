"""What the tests of commands share."""

import pytest

from ssdn_tf.inference import predictor


@pytest.fixture
def eager(monkeypatch):
    """Predictors without tracing, which would take most of the time here."""

    def compiled(model):
        model.compile(run_eagerly=True)
        return model

    monkeypatch.setattr(predictor, "_compiled", compiled)
