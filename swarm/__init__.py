"""Training together: hosting, pipeline, averaging, tensors, state."""
