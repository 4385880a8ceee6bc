"""Mean and standard deviation of the pixels of ImageNet, for each channel, of values in [0, 1]."""

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
IMAGENET = (MEAN, STD)
