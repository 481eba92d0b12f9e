"""What the commands do, as plain functions: the Python API."""
