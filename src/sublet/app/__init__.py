"""Builds everything and knows every room: loops, web apps, processes."""
