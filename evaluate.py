"""Measures a denoiser on the paper's sets: `python evaluate.py --help`. Everything is in ssdn_tf.commands."""

from ssdn_tf import commands

if __name__ == "__main__":
    commands.evaluate()
