"""Training by gradient: optimizer, update, layers, batches. No model, data set or run folder."""
