"""Text and its tokens: reading, tokenizing, shards. No model and no training."""
