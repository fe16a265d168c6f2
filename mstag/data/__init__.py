"""Music and labels -> batches."""
