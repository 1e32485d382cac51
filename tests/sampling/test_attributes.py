"""Attributes by name: forgiving names, values of both kinds, and what contradicts what."""

import dataclasses

import numpy as np
import pytest

from cmma_jax.data.lfw import load_lfw
from cmma_jax.errors import InputError
from cmma_jax.models.spec import Spec
from cmma_jax.sampling.attributes import EXCLUSIVE, OTHERWISE, Attributes, parse_settings

NAMES = ("Male", "No Eyewear", "Eyeglasses", "Sunglasses", "Mouth Closed", "Mouth Wide Open", "5 o' Clock Shadow")
BINARY = Attributes(Spec("some", NAMES, ("binary",) * 7, (0.5,) * 7, (0.5,) * 7, np.zeros((16, 16, 3), np.float32), 0.2,
                         ((),) * 7))
REAL = Attributes(dataclasses.replace(
    BINARY.spec, kinds=("real",) * 7, attribute_mean=(10.0,) * 7, attribute_std=(2.0,) * 7,
    attribute_percentiles=(tuple(np.linspace(5, 15, 101).tolist()),) * 7))
UNKNOWN = np.zeros(7), np.zeros(7, bool)


@pytest.mark.parametrize("name, column", [("Male", 0), ("no_eyewear", 1), ("EYEGLASSES", 2), ("mouth-wide open", 5),
                                          ("5_o_Clock_Shadow", 6), (" male ", 0)])
def test_names_are_forgiving(name, column):
    assert BINARY.find(name) == column


def test_names_in_other_letters_and_of_signs_alone_are_names():
    names = ("\u5fae\u7b11", "\u5e3d\u5b50", "L\u00e4chelt", "A+", "A-", "+", "-")
    found = Attributes(dataclasses.replace(BINARY.spec, attributes=names))
    assert [found.find(name) for name in names] == list(range(7)) and found.find("la\u0308chelt") == 2


def test_an_unknown_name_is_corrected():
    with pytest.raises(InputError, match="unknown attribute 'eye glases'; did you mean 'Eyeglasses'"):
        BINARY.find("eye glases")


@pytest.mark.parametrize("attributes, text, value", [
    (BINARY, "1", 1), (BINARY, "yes", 1), (BINARY, "No", 0), (BINARY, 0.25, 0.25), (BINARY, "?", None),
    (BINARY, None, None), (REAL, "+2sd", 2), (REAL, "-0.5sd", -0.5), (REAL, "14", 2), (REAL, 9, -0.5),
    (REAL, "p50", 0), (REAL, "p95", 2.25), (REAL, "?", None)])
def test_values(attributes, text, value):
    assert attributes.value("Male", text) == (None if value is None else pytest.approx(value))


def test_of_a_mixed_table_each_attribute_has_its_own_kind():
    mixed = Attributes(dataclasses.replace(REAL.spec, kinds=("binary",) + ("real",) * 6, attribute_percentiles=(
        ((),) + REAL.spec.attribute_percentiles[1:])))
    assert (mixed.value("Male", "yes"), mixed.value("Sunglasses", "+2sd"), mixed.value("Eyeglasses", "14")) == (1, 2, 2)
    with pytest.raises(InputError, match="Male=14.*from 0 to 1"):
        mixed.value("Male", 14)
    with pytest.raises(InputError, match="Sunglasses=yes.*a score"):
        mixed.value("Sunglasses", "yes")
    y, mask = mixed.settle({"Male": 0, "Eyeglasses": "+1sd"}, *UNKNOWN)
    assert y.tolist() == [0, pytest.approx(-2.25), 1, pytest.approx(-2.25), 0, 0, 0] and mask.sum() == 4


def test_of_a_column_of_words_one_holds():
    words = Attributes(dataclasses.replace(BINARY.spec, attributes=("Male", "race: Asian", "race: Black", "race: White",
                                                                    "hair: Black", "x", "y")))
    y, mask = words.settle({"race: Black": 1}, *UNKNOWN)
    assert y.tolist() == [0, 0, 1, 0, 0, 0, 0] and mask.tolist() == [False, True, True, True, False, False, False]


@pytest.mark.parametrize("attributes, text", [
    (BINARY, "2"), (BINARY, "-0.1"), (BINARY, "nan"), (BINARY, "+2sd"), (BINARY, "p95"), (BINARY, "perhaps"),
    (REAL, "p101"), (REAL, "+9sd"), (REAL, "1e9"), (REAL, "nan"), (REAL, "yes"), (REAL, "psd")])
def test_bad_values_are_named_with_what_is_expected(attributes, text):
    with pytest.raises(InputError, match="Male=.*give a "):
        attributes.value("Male", text)


def known(settings, attributes=BINARY, y=UNKNOWN[0], mask=UNKNOWN[1], **options):
    y, mask = attributes.settle(settings, y, mask, **options)
    return {name: float(value) for name, value, there in zip(NAMES, y, mask, strict=True) if there}


def test_setting_an_attribute_resets_what_contradicts_it_and_leaves_the_rest_unknown():
    assert known({"Eyeglasses": 1}) == {"Eyeglasses": 1, "No Eyewear": 0, "Sunglasses": 0}
    assert known({"Eyeglasses": 1}, groups=False) == {"Eyeglasses": 1}
    assert known({"Eyeglasses": 0}) == {"Eyeglasses": 0}
    assert known({"Male": "?"}, y=np.ones(7), mask=np.arange(7) < 2) == {"No Eyewear": 1}


def test_resetting_the_last_of_some_sets_what_holds_otherwise():
    wearing = np.array([1, 0, 1, 0, 0, 0, 0.0])
    assert known({"Eyeglasses": 0}, y=wearing, mask=np.ones(7, bool))["No Eyewear"] == 1
    assert known({"Eyeglasses": 0}, y=wearing, mask=np.ones(7, bool), groups=False)["No Eyewear"] == 0
    both = np.array([1, 0, 1, 1, 0, 0, 0.0])
    assert known({"Eyeglasses": 0}, y=both, mask=np.ones(7, bool))["No Eyewear"] == 0
    assert known({"Male": 0}, y=both, mask=np.ones(7, bool)) == dict(zip(NAMES, both, strict=True)) | {"Male": 0}


def test_many_faces_at_once_are_each_settled():
    y = np.array([[0, 0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0.0]])
    alone = [BINARY.settle({"Eyeglasses": 0}, row, np.ones(7, bool))[0] for row in y]
    np.testing.assert_array_equal(BINARY.settle({"Eyeglasses": 0}, y, np.ones((2, 7), bool))[0], alone)


def test_a_contradicted_real_valued_attribute_is_put_at_its_5th_percentile():
    low = pytest.approx((5.5 - 10) / 2)
    assert known({"Eyeglasses": "+2sd"}, REAL) == {"Eyeglasses": 2, "No Eyewear": low, "Sunglasses": low}


def test_contradicting_settings_are_refused():
    with pytest.raises(InputError, match="Eyeglasses and No Eyewear contradict each other.*--no-groups"):
        known({"Eyeglasses": 1, "no eyewear": 1})
    assert known({"Eyeglasses": 1, "no eyewear": 1}, groups=False) == {"Eyeglasses": 1, "No Eyewear": 1}
    with pytest.raises(InputError, match="Male is set twice"):
        known({"Male": 1, "male": 0})


def test_settings_as_text():
    assert parse_settings("Male=1, Smiling=+2sd,Bald,") == {"Male": "1", "Smiling": "+2sd", "Bald": "1"}
    assert parse_settings('"Hair, dark"=1, "a=b"=0') == {"Hair, dark": "1", "a=b": "0"}
    for bad in ("=1", "Male=", "Male=1,Male=0"):
        with pytest.raises(InputError):
            parse_settings(bad)


def test_the_groups_name_lfws_attributes_and_are_rare_together_there(lfw_dir):
    data = load_lfw(lfw_dir)
    names, y = data.spec.attributes, data.train.y
    for group in (*EXCLUSIVE, *((name, *others) for name, others in OTHERWISE.items())):
        assert set(group) <= set(names), group
    for group in EXCLUSIVE:
        for i, one in enumerate(group):
            for two in group[i + 1:]:
                a, b = y[:, names.index(one)], y[:, names.index(two)]
                assert (a * b).mean() < 0.95 * a.mean() * b.mean() or (a * b).mean() < 0.005, (one, two)
