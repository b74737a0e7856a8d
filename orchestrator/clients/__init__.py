"""Typed clients of the services, and the translation of their messages."""
