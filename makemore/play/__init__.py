"""A local web page for exploring runs: type text, see the model's predictions."""
