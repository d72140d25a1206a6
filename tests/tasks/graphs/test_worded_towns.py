from collections import Counter

import pytest
import torch

from heldout.tasks import TOWN_WORDS, worded_towns

VALUE = {word: at for words in TOWN_WORDS.values() for at, word in enumerate(words)}


def test_relations_are_steps_in_one_attribute_and_all_of_them_are_there():
    towns = worded_towns(200, seed=1)
    values = torch.tensor([[VALUE[word] for word in name.split()] for name in towns.names])
    expected = set()
    for h in range(200):
        for t in range(200):
            step = (values[t] - values[h]).tolist()
            for place in range(3):
                if step[place] in (1, 2) and not any(step[:place] + step[place + 1 :]):
                    expected.add((h, 2 * place + step[place] - 1, t))
    assert set(map(tuple, towns.triples.tolist())) == expected
    assert towns.relations[:3] == ("larger", "much larger", "older")
    assert torch.equal(towns.labels, values[:, 0])
    assert len(set(towns.names)) == 200


def test_descriptions_hold_the_own_words_and_those_of_another_town_in_either_order():
    towns = worded_towns(300, seed=2)
    orders = Counter()
    for name, text in zip(towns.names, towns.descriptions, strict=True):
        words = text.split()
        if words[0] == "beside":
            own, other = words[-4:-1], words[2:5]
        else:
            own, other = words[1:4], words[-4:-1]
        assert " ".join(own) == name
        assert " ".join(other) in towns.names
        assert other != own
        orders[words[0]] += 1
    assert min(orders.values()) > 100


def test_a_bag_of_words_has_two_readings_for_most_towns():
    towns = worded_towns(512)
    bags = Counter(tuple(sorted(set(text.split()) & set(VALUE))) for text in towns.descriptions)
    assert len(bags) > 500  # descriptions differ, and yet which words are the town's own is not in the bag
    assert sorted(worded_towns(512, seed=3).names) == sorted(towns.names)


def test_seeds_draw_and_sizes_are_checked():
    assert worded_towns(50, seed=1).names != worded_towns(50, seed=2).names
    assert worded_towns(50, seed=1).descriptions == worded_towns(50, seed=1).descriptions
    for entities in (1, 513):
        with pytest.raises(ValueError, match="entities"):
            worded_towns(entities)
