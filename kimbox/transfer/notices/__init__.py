"""Notifications: what waits to be sent, and how a mail, a program and apprise get it."""
