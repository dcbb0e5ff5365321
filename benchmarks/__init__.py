"""Measurements that are not tests. Run from the root of the repository."""
