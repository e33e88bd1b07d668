"""What other setting of jumpout would leave BatchNorm in agreement."""
