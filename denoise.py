"""Denoises a picture: `python denoise.py --help`. Everything is in ssdn_tf.commands.denoise."""

from ssdn_tf.commands import denoise

if __name__ == "__main__":
    denoise.denoise()
