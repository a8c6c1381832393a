"""Self-supervised image denoising with a blind-spot network (Laine et al., NeurIPS 2019).

    import ssdn_tf
    result = ssdn_tf.denoise(image)      # result.denoised, result.std, result.noise

Everything else is imported by its module (`from ssdn_tf.noise import registry`), so that the NumPy-only modules load
without Keras. Keras and a network are loaded at the first call of `denoise`.
"""

__version__ = "0.1.0"


def denoise(image, **options):
    """Denoises an array; see `ssdn_tf.inference.pictures.denoise` for the options and the result."""
    from ssdn_tf.inference import pictures

    return pictures.denoise(image, **options)
