"""Offer the data sets that the workloads train on: load, fetch, verify, describe, augment."""

from gsdist.data.augment import (
    normalize,
    random_colours,
    random_crop,
    random_flip,
    random_resized_crop,
)
from gsdist.data.class_balanced import ClassBalancedBatches
from gsdist.data.download import data_root
from gsdist.data.images import ImageArrays, ImageDataset, ImageFormat, few_of_each_class
from gsdist.data.registry import (
    FETCHABLE,
    DatasetInfo,
    check_dataset_name,
    describe,
    fetch,
    load_dataset,
    load_text,
)
from gsdist.data.text import TextWindows

__all__ = [
    "FETCHABLE",
    "ClassBalancedBatches",
    "DatasetInfo",
    "ImageArrays",
    "ImageDataset",
    "ImageFormat",
    "TextWindows",
    "check_dataset_name",
    "data_root",
    "describe",
    "fetch",
    "few_of_each_class",
    "load_dataset",
    "load_text",
    "normalize",
    "random_colours",
    "random_crop",
    "random_flip",
    "random_resized_crop",
]
