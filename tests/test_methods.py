"""Every Method under one name."""

import pytest

from heldout.catalog import method_factories
from heldout.method import Method
from heldout.methods import available, default_settings, on_request, parse, space, with_settings


@pytest.mark.parametrize("name", sorted(method_factories()))
def test_every_method_of_the_catalog_can_be_made(name):
    method = parse(name)
    assert isinstance(method, Method)
    assert method.stages
    assert name in available()


@pytest.mark.parametrize(
    "expression", ["__import__('os')", "sam(0.1)", "sam(**{})", "sam.x", "sam - tent", "sam(rho=open('x'))", "", "1"]
)
def test_method_expressions_are_never_evaluated(expression):
    with pytest.raises(ValueError):
        parse(expression)


def test_parse_composes_and_passes_keyword_arguments():
    assert parse("sam(rho=0.1) + ps_kd").stages == ("optimizer", "loss")
    assert parse("own + sam", {"own": Method("x")}).name == "own+sam"
    with pytest.raises(ValueError, match="no method 'nothing'; there are"):
        parse("nothing")
    with pytest.raises(ValueError, match="rho must be finite"):
        parse("sam(rho=-1)")


@pytest.mark.parametrize("name", sorted(method_factories()))
def test_every_value_of_a_space_makes_the_method(name):
    for key, values in space(name).items():
        assert key.startswith(f"{name}.")
        for value in values[:2] if isinstance(values, tuple) else values:
            expression = with_settings(name, {key: value})
            assert parse(expression).name == expression


def test_a_composition_has_the_spaces_of_its_parts_but_not_what_is_set():
    assert set(space("bang + sam")) == {"bang.alpha", "bang.smoothing", "bang.mixup_alpha", "sam.rho"}
    assert space("sam(rho=0.1)") == {}
    assert space("sam", {"sam": Method("mine")}) == {}
    with pytest.raises(ValueError, match="no method"):
        space("nothing")


def test_settings_are_written_into_an_expression():
    assert with_settings("bang(alpha=0.3)+t3a", {"bang.smoothing": 0.2}) == "bang(alpha=0.3,smoothing=0.2)+t3a"
    assert with_settings("drm", {"drm.estimate": "uniform"}) == "drm(estimate='uniform')"
    assert parse(with_settings("sam", {"sam.rho": 1e-05})).name == "sam(rho=1e-05)"
    with pytest.raises(ValueError, match=r"sam\.rho"):
        with_settings("t3a", {"sam.rho": 0.1})


def test_ensembles_are_tried_on_request_only():
    assert set(on_request()) <= set(available())


@pytest.mark.parametrize("name", sorted(method_factories()))
def test_the_own_value_of_a_parameter_lies_in_its_space(name):
    values = space(name)
    for key, own in default_settings(name).items():
        each = values[key]
        assert each[0] <= own <= each[1] if isinstance(each, tuple) else own in each
