"""Export as a web page: the model as a list of tensor operations, and JavaScript that runs them."""
