"""Trains a denoiser: `python train.py --help`. Everything is in ssdn_tf.commands.train."""

from ssdn_tf.commands.train import train

if __name__ == "__main__":
    train()
