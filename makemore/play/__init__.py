"""A page on this machine to play with runs: written text in, the model's expectations out."""
