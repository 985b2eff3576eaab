"""Pictures of rolls, of datasets and of training runs."""
