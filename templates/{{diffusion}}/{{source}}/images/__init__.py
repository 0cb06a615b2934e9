"""Images: where they come from, shards on disk, augmentation, features, metrics. No model."""
