"""Other programs' models, read without running anything that is in them."""
