"""Behaviour that users rely on, told as sentences, on real PostgreSQL and real Valkey."""
