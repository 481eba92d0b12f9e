"""Models computed in C for training: loss and gradients without autograd, faster than what it compiles to."""
