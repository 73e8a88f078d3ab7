"""What tasks are made of: models, trainers, data."""
