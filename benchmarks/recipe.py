"""The recipe of all timed steps: number of classes, and SGD."""

CLASSES = 200
RATE, MOMENTUM, DECAY = 1e-3, 0.9, 1e-4
