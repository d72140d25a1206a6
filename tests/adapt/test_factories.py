"""Methods refuse when they are made what their adapters would refuse after a whole training."""

import pytest

from heldout import methods


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: methods.tent(steps=0), "steps"),
        (lambda: methods.itta(steps=0), "steps"),
        (lambda: methods.itta(lr=0.0), "lr"),
        (lambda: methods.itta(eps=0.0), "eps"),
        (lambda: methods.itta(alpha=-1.0), "alpha"),
        (lambda: methods.itta(depth=-3), "depth"),
        (lambda: methods.t3a(filter_k=0), "filter_k"),
        (lambda: methods.adanpc(beta=-0.1), "beta"),
        (lambda: methods.adanpc(max_added=-1), "max_added"),
        (lambda: methods.drm(gamma=-1.0), "gamma"),
    ],
)
def test_bad_options_are_refused_before_training(make, name):
    with pytest.raises(ValueError, match=name):
        make()


def test_what_the_adapters_take_is_taken():
    for made in (methods.t3a(filter_k=None), methods.adanpc(max_added=None), methods.drm(gamma=-1.0, hard=True)):
        assert made.stages
