"""The product is broken on purpose, and must lose nothing: `make faults`."""
