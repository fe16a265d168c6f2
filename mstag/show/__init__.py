"""What people look at: arrays -> plots, and the page they stand on."""
