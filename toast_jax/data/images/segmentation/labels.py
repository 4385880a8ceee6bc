"""The label of pixels that do not count: neither in a loss nor in a score."""

IGNORED = 255
