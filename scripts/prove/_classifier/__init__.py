"""A published corpus of messages with and without sensitive values, and the measurement of the classifier on it."""
