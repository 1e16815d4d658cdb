# SPDX-License-Identifier: Apache-2.0
"""Class folders of ImageNet's images, as TensorFlow Datasets itself prepares them."""

import tensorflow_datasets as tfds

from mambaout_jax.imagenet_classes import SYNSETS

FOLDERS = {"train": "train", "validation": "val"}


def write_with_tfds(folders, out, in_order=False):
    """Writes ArrayRecord files below `out`, in shards and with a compression of TFDS's choice.

    Args:
        folders: holds train/n01440764/*.JPEG and val/n01440764/*.JPEG.
        out: is made, and returned.
        in_order: keeps the order of the files' names, instead of TFDS's own.
    """
    with tfds.core.registered.skip_registration():

        class Imagenet2012(tfds.core.GeneratorBasedBuilder):
            """The examples of TensorFlow Datasets' builder, whose own one needs TensorFlow."""

            VERSION = tfds.core.Version("5.0.0")

            def _info(self):
                features = {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=list(SYNSETS)),
                    "file_name": tfds.features.Text(),
                }
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    disable_shuffling=in_order,
                )

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(name) for split, name in FOLDERS.items()}

            def _generate_examples(self, name):
                for path in sorted((folders / name).glob("*/*")):
                    synset, image = path.parent.name, path.read_bytes()
                    yield path.name, {"image": image, "label": synset, "file_name": path.name}

    Imagenet2012(data_dir=out, file_format="array_record").download_and_prepare()
    return out
