"""A whole fleet for months in minutes: the real rules on a clock that a program moves."""
