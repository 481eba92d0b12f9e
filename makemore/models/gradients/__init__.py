"""Loss and gradients of a training step in C: without autograd, and faster than what it compiles to."""
