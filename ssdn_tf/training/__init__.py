"""Training: options, the folder of a run, fitting, checkpoints, optimizers, devices."""
