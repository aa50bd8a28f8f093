"""Measurements of speed and memory.

Each variant in a process of its own, each row with its command.
"""
