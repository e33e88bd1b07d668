"""What a file does with the sizes of its open axes."""
