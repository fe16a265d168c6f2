"""A trained model -> tags for anyone's music."""
