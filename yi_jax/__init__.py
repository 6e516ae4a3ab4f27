"""The Yi model family in JAX. Importing this imports nothing heavy."""
