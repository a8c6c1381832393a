"""Measures a denoiser on the paper's sets: `python evaluate.py --help`. Everything is in ssdn_tf.commands.main."""

from ssdn_tf.commands import main

if __name__ == "__main__":
    main.evaluate()
