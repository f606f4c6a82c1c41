"""What a mode is: the loss of a batch, what is measured beside it, and how the model is asked."""
