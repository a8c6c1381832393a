"""SavedModels for TensorFlow Serving, and a client for the server."""
