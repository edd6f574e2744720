"""What networks are made of, on `keras.ops`: layers, backbones with their weights, losses."""
