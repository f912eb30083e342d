"""The engineer: asks a language model for kernels and reads what it replies."""
