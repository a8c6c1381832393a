"""Measures a denoiser on the paper's sets: `python evaluate.py --help`. Everything is in ssdn_tf.commands.evaluate."""

from ssdn_tf.commands import evaluate

if __name__ == "__main__":
    evaluate.evaluate()
