"""The label of ignored pixels, which enter neither losses nor scores."""

IGNORED = 255
