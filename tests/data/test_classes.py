from __future__ import annotations

import numpy as np
from timm.data import ImageNetInfo

from tutelage.data.classes import map_classes

WORDNET = ImageNetInfo().label_names()


def test_wordnet_ids_find_their_place_in_the_imagenet_head():
    classes = ["n01440764", "n02123045", "n15075141"]
    assert map_classes(classes, WORDNET).tolist() == [0, 281, 999]


def test_order_of_the_data_does_not_matter():
    shuffled = np.random.default_rng(0).permutation(WORDNET).tolist()
    mapped = map_classes(shuffled, WORDNET)
    assert [WORDNET[i] for i in mapped] == shuffled


def test_no_mapping_where_a_class_is_unknown_or_names_are_not_unique():
    assert map_classes(["n01440764", "cat"], WORDNET) is None
    assert map_classes(["cat", "dog"], None) is None
    assert map_classes(["cat", "dog"], ["cat", "dog", "cat"]) is None
    assert map_classes(["cat", "cat"], ["cat", "dog"]) is None
