"""Denoises a picture: `python denoise.py --help`. Everything is in ssdn_tf.commands.main."""

from ssdn_tf.commands import main

if __name__ == "__main__":
    main.denoise()
