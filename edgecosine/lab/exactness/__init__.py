"""Whether answers under speculation are those of plain decoding."""
