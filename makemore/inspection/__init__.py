"""Pictures of a trained model and what they say in plain words, a file for each kind of picture."""
