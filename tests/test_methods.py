"""Every Method under one name."""

import pytest

from heldout.catalog import method_factories
from heldout.method import Method
from heldout.methods import available, parse


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
