"""From an experiment to Keras models: the one room where networks and noise models meet."""
