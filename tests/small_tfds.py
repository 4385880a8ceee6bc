"""TFDS datasets of a few images, written without TensorFlow: the features are the real builders', the images are made up."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets import builder as real_builder
from tensorflow_datasets.core import dataset_info

dataset_info.DatasetInfo.initialize_from_bucket = lambda self: None  # every builder would leave an empty temporary folder


def prepare(name, root, counts, *, num_shards=None, change=lambda example, index: None):
    """Prepares `counts[split]` images of each split of a builder under `root`; `change` may mend an example."""
    config = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=num_shards)
    builder(name, root, counts, change).download_and_prepare(download_config=config, file_format="array_record")


def builder(name, root, counts, change=lambda example, index: None):
    """The real builder, but for what it generates."""
    one = real_builder(name, data_dir=str(root))

    def examples(split, count):
        for index in range(count):
            example = {key: _made_up(feature, split, index) for key, feature in one.info.features.items()}
            change(example, index)
            yield index, example

    one._split_generators = lambda download_manager: {split: examples(split, count) for split, count in counts.items()}
    return one


def _made_up(feature, split, index):
    features = tfds.features
    if isinstance(feature, features.Image):
        height, width, channels = (side or 20 + index % 7 for side in feature.shape)
        return png(pixels(index, height, width, channels))
    if isinstance(feature, features.ClassLabel):
        return index % feature.num_classes
    if isinstance(feature, features.Text):
        return f"{split}_{index}.png"
    if isinstance(feature, features.BBoxFeature):
        return features.BBox(0.0, 0.0, 1.0, 1.0)
    if isinstance(feature, features.Sequence):
        inner = feature.feature.items()
        return [{key: _made_up(one, split, index + i) for key, one in inner} for i in range(3 + index % 8)]
    return np.full(feature.shape, index, feature.np_dtype)


def pixels(index, height, width, channels):
    """The made-up image of an example: uint8 [height, width, channels]."""
    return np.broadcast_to((np.arange(width)[:, None] + 3 * index) % 256, (height, width, channels)).astype(np.uint8)


def png(pixels):
    """A file of uint8 [H, W, 3] or [H, W, 1]."""
    file = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).save(file, "PNG")
    file.seek(0)
    return file
