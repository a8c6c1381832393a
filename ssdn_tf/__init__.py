"""Self-supervised image denoising with a blind-spot network (Laine et al., NeurIPS 2019).

Modules are imported by name (`from ssdn_tf import noise`); nothing is re-exported,
so that the NumPy-only ones (`images`, `metrics`, `data`) load without Keras.
"""

__version__ = "0.1.0"
