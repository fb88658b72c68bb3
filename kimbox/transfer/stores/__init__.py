"""Stores for saved boxes: folders and servers, each behind the interface of `base`."""
