"""What people train with: the layer, its functional form, its reference, conversion and initialisation."""
