"""What all timed steps train with: a head of so many classes, by SGD."""

CLASSES = 200
RATE, MOMENTUM, DECAY = 1e-3, 0.9, 1e-4
