"""Notifier: texts to many clients at the right time through an HTTP gateway nobody can trust."""

__version__ = "0.2.0.dev0"
