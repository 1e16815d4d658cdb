# SPDX-License-Identifier: Apache-2.0
"""One shard of prepared ImageNet: written, read back, and described to TensorFlow Datasets."""

import functools
import io
import os
from pathlib import Path
from typing import Any

from mambaout_jax.data.prepare.archives import Member
from mambaout_jax.data.sets.image_files import decode_image, open_image
from mambaout_jax.data.sets.imagenet import DATASET
from mambaout_jax.imagenet_classes import SYNSETS

VERSION = "5.1.0"  # the version of imagenet2012 in TensorFlow Datasets that has these features

# Each record is a chunk of its own, for random access. JPEG files do not compress any further.
_OPTIONS = "group_size:1,uncompressed"
_JPEG_QUALITY = 100


def shard_path(folder: Path, split: str, index: int, count: int) -> Path:
    """The shard's path, named as TensorFlow Datasets expects."""
    return folder / f"{DATASET}-{split}.array_record-{index:05}-of-{count:05}"


def write_shard(path: Path, members: list[Member]) -> None:
    """Writes a shard of these images in this order.

    `path` exists only when the shard is complete; a killed process leaves a temporary file beside
    it.

    Raises:
        UnreadableImageError: an image cannot be decoded.
        OSError: a source cannot be read, or the shard cannot be written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    writer = ArrayRecordWriter(str(temporary), _OPTIONS)
    for member in members:
        image = {
            "image": _rgb_or_grey_jpeg(member.read(), f"{member.name} of {member.path}"),
            "label": member.label,
            "file_name": member.name,
        }
        example = tf_example_pb2.Example.FromString(
            _features().serialize_example(_features().encode_example(image))
        )
        # Features are a map, whose order differs between processes.
        writer.write(example.SerializeToString(deterministic=True))
    writer.close()
    temporary.replace(path)


def check_shard(path: Path, members: list[Member]) -> tuple[int, list[str]]:
    """Reads a shard back.

    Returns:
        The size of its records in bytes, and the names of the images that `write_shard` converted.

    Raises:
        ValueError: the shard does not hold exactly these images, with these labels and in this
            order, as grey or RGB JPEG files.
    """
    from array_record.python.array_record_module import ArrayRecordReader
    from tensorflow_datasets import decode

    try:
        records = ArrayRecordReader(str(path)).read_all()
        size = 0
        converted = []
        for record, member in zip(records, members, strict=True):
            example = _features().deserialize_example_np(
                record, decoders={"image": decode.SkipDecoding()}
            )
            image = example["image"]
            name = example["file_name"].decode()
            if (name, int(example["label"])) != (member.name, member.label):
                raise ValueError(f"it holds {name} in place of {member.name}")
            if not _is_rgb_or_grey_jpeg(image):
                raise ValueError(f"{name} is not a grey or RGB JPEG file")
            size += len(record)
            if len(image) != member.size:
                converted.append(name)
    # ArrayRecord and protobuf raise errors of many types.
    except Exception as error:
        raise ValueError(
            f"{path} is damaged ({error}); remove this file and run the same command again"
        ) from error
    return size, converted


@functools.cache
def _features() -> Any:
    from tensorflow_datasets import features

    return features.FeaturesDict(
        {
            "image": features.Image(encoding_format="jpeg"),
            "label": features.ClassLabel(names=SYNSETS),
            "file_name": features.Text(),
        }
    )


def _rgb_or_grey_jpeg(content: bytes, name: str) -> bytes:
    image = decode_image(content, 3, name)  # even if the file is kept: it must be decodable
    if _is_rgb_or_grey_jpeg(content):
        return content
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY, subsampling=0)  # full chroma resolution
    return file.getvalue()


def _is_rgb_or_grey_jpeg(content: bytes) -> bool:
    image = open_image(content)
    return image.format == "JPEG" and image.mode in ("L", "RGB")


def write_metadata(
    folder: Path, shard_lengths: dict[str, list[int]], num_bytes: dict[str, int]
) -> None:
    """Writes the files by which TensorFlow Datasets finds the shards (`shard_path`).

    Args:
        folder: where the shards are.
        shard_lengths: number of records in each shard, by split.
        num_bytes: size of all records together, by split.
    """
    import tensorflow_datasets as tfds

    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=lengths,
            num_bytes=num_bytes[split],
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=tfds.core.Path(folder),
                dataset_name=DATASET,
                split=split,
                filetype_suffix="array_record",
            ),
        )
        for split, lengths in shard_lengths.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=_features(),
        split_infos=splits,
        version=VERSION,
        check_data=False,  # done by check_shard
        description="ILSVRC 2012, prepared by mambaout-jax.",
        homepage="https://image-net.org/",
        supervised_keys=("image", "label"),
    )
