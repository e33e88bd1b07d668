"""What can be said of any network and its batches."""
