"""Training by gradient: optimizer, update, layers, batches. No model, data or run folder."""
