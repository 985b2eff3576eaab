"""The loop dataset: its records, its Parquet shards, its splits, its tensors, its exports."""
