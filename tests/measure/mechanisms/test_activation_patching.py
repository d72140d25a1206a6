import pytest
import torch
import transformers

from heldout.lm import smollm
from heldout.measure import Site, activation_patch, all_sites, residual_stream
from heldout.nn import decoder_parts, share_layers
from heldout.sources import SMOL, missing
from tests.measure.mechanisms.decoders import CONFIGS, LAYERS, SPARSE, decoder, token_ids, untouched


def last(logits):
    return logits[:, -1].log_softmax(-1)[:, 4]


@torch.no_grad()
def one_by_one(model, clean, corrupt, sites, metric, mask=None):
    """A whole forward pass for each site, with a hook that overwrites one state."""
    blocks, told = decoder_parts(model).blocks, {} if mask is None else {"attention_mask": mask}
    model.eval()
    source = residual_stream(model, corrupt, mask).states
    found = []
    for site in sites:

        def put_in(block, args, site=site):
            hidden = args[0].clone()
            hidden[:, site.position] = source[site.layer][:, site.position]
            return (hidden, *args[1:])

        handle = blocks[site.layer].register_forward_pre_hook(put_in)
        found.append(metric(model(input_ids=clean, **told).logits))
        handle.remove()
    return torch.stack(found)


@pytest.mark.parametrize("kind", CONFIGS)
def test_patching_in_batches_equals_patching_one_by_one(kind):
    model = decoder(kind)
    clean, corrupt = token_ids(2, 5), token_ids(2, 5, seed=1)
    sites = all_sites(model, 5)
    before = untouched(model)
    found = activation_patch(model, clean, corrupt, sites, last)
    assert untouched(model) == before
    assert found.shape == (LAYERS * 5, 2)
    torch.testing.assert_close(found, one_by_one(model, clean, corrupt, sites, last))
    torch.testing.assert_close(activation_patch(model, clean, corrupt, sites, last, batch_size=4), found)


BIASED = {  # tables of biases, whose first axis may be that of heads, or of heads and rows
    "Mpt": {"d_model": 16, "n_heads": 2, "n_layers": LAYERS, "max_seq_len": 16, "vocab_size": 23},
    "Bloom": {"hidden_size": 16, "n_head": 2, "n_layer": LAYERS, "vocab_size": 23, "bos_token_id": None,
              "eos_token_id": None, "pad_token_id": None},
}  # fmt: skip


@pytest.mark.parametrize("kind", BIASED)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_tables_of_biases_are_not_cut_as_if_they_had_an_entry_for_each_row(kind, count):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**BIASED[kind])
    model = getattr(transformers, f"{kind}ForCausalLM")(config).double()
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    clean, corrupt = token_ids(1, 5), token_ids(1, 5, seed=1)
    sites = [Site(layer, 2) for layer in range(LAYERS)][-count:]
    found = activation_patch(model, clean, corrupt, sites, last)
    torch.testing.assert_close(found, one_by_one(model, clean, corrupt, sites, last))


def test_a_site_at_which_one_of_two_rows_differs_is_patched():
    model = decoder("GPT2")
    clean = token_ids(2, 5)
    corrupt = clean.clone()
    corrupt[1, 1] = (clean[1, 1] + 1) % 23
    found = activation_patch(model, clean, corrupt, [Site(0, 1)], last)
    torch.testing.assert_close(found, one_by_one(model, clean, corrupt, [Site(0, 1)], last))
    assert found[0, 0] == last(residual_stream(model, clean).logits)[0]
    assert found[0, 1] != last(residual_stream(model, clean).logits)[1]


@pytest.mark.parametrize("kind", CONFIGS)
def test_where_both_prompts_agree_the_outcome_is_the_clean_one_to_the_bit(kind):
    model, clean = decoder(kind).float(), token_ids(2, 5)
    logits = residual_stream(model, clean).logits
    same = activation_patch(model, clean, clean, all_sites(model, 5), lambda logits: logits.flatten(1).sum(1))
    assert torch.equal(same, logits.flatten(1).sum(1).expand(LAYERS * 5, 2))
    model.double()
    if kind in SPARSE:
        return  # how an expert rounds depends on the other tokens that it is handed
    corrupt = clean.clone()
    corrupt[:, 3] = (corrupt[:, 3] + 1) % 23
    found = activation_patch(model, clean, corrupt, all_sites(model, 5), last).view(LAYERS, 5, 2)
    logits = residual_stream(model, clean).logits
    assert torch.equal(found[:, :3], last(logits).expand(LAYERS, 3, 2))  # causal: nothing differs before
    assert torch.equal(found[0, 4], last(logits))
    assert bool((found[1:, 4] != last(logits)).any())


@pytest.mark.parametrize("kind", CONFIGS)
def test_patching_all_positions_at_any_layer_is_running_the_corrupt_prompt(kind):
    model = decoder(kind)
    clean, corrupt = token_ids(2, 5), token_ids(2, 5, seed=1)
    expected = last(residual_stream(model, corrupt).logits)
    sites = [Site(layer) for layer in range(LAYERS + 1)] + [Site(0, (0, 1, 2, 3, -1))]
    torch.testing.assert_close(activation_patch(model, clean, corrupt, sites, last), expected.expand(LAYERS + 2, 2))


def test_behind_the_last_block_only_the_position_that_is_asked_matters():
    model = decoder("Qwen3")
    clean, corrupt = token_ids(2, 5), token_ids(2, 5, seed=1)
    sites = [Site(LAYERS, position) for position in range(5)]
    found = activation_patch(model, clean, corrupt, sites, last)
    assert torch.equal(found[:4], last(residual_stream(model, clean).logits).expand(4, 2))
    torch.testing.assert_close(found[4], last(residual_stream(model, corrupt).logits))


def test_padding_and_one_number_for_all_rows():
    model = decoder("GPT2")
    clean, corrupt, mask = token_ids(2, 5), token_ids(2, 5, seed=1), torch.ones(2, 5).long()
    mask[1, 0] = 0
    sites = all_sites(model, 5)
    found = activation_patch(model, clean, corrupt, sites, lambda logits: last(logits).mean(), attention_mask=mask)
    expected = one_by_one(model, clean, corrupt, sites, last, mask).mean(1)
    assert found.shape == (LAYERS * 5,)
    torch.testing.assert_close(found, expected)


def test_blocks_with_shared_weights_are_patched_each_at_its_place():
    import copy

    model = copy.deepcopy(decoder("GPT2"))
    share_layers(model, times=3)
    clean, corrupt = token_ids(2, 5), token_ids(2, 5, seed=1)
    sites = all_sites(model, 5)
    found = activation_patch(model, clean, corrupt, sites, last)
    torch.testing.assert_close(found, one_by_one(model, clean, corrupt, sites, last))


@pytest.mark.skipif(bool(missing([SMOL])), reason="no SmolLM2")
def test_smollm_names_the_capital_of_the_country_that_is_patched_in():
    model, tokenizer = smollm()
    clean, corrupt = (
        tokenizer(f"The capital of {country} is the city of", return_tensors="pt").input_ids
        for country in ("France", "Italy")
    )
    rome, paris = (tokenizer(word, add_special_tokens=False).input_ids[0] for word in (" Rome", " Paris"))
    country = int((clean != corrupt)[0].long().argmax())

    def prefers_rome(logits):
        return logits[:, -1, rome] - logits[:, -1, paris]

    early, late, behind = activation_patch(
        model, clean, corrupt, [Site(1, country), Site(29, country), Site(1, country + 1)], prefers_rome
    ).squeeze(1)
    unpatched = prefers_rome(residual_stream(model, clean).logits)
    assert early > 0 > unpatched
    assert abs(late - unpatched) < 0.2 * (early - unpatched)
    assert abs(behind - unpatched) < 0.2 * (early - unpatched)


def test_bad_input_is_refused_by_name_and_leaves_the_model_as_it_was():
    model = decoder("GPT2")
    clean, corrupt = token_ids(2, 5), token_ids(2, 5, seed=1)
    before = untouched(model)
    for argument, call in {
        "corrupt_ids": lambda: activation_patch(model, clean, corrupt[:1], [Site(0, 0)], last),
        "sites": lambda: activation_patch(model, clean, corrupt, [Site(4, 0)], last),
        "sites must have positions": lambda: activation_patch(model, clean, corrupt, [Site(1, 5)], last),
        "sites must not be empty": lambda: activation_patch(model, clean, corrupt, [], last),
        "head": lambda: activation_patch(model.transformer, clean, corrupt, [Site(1, 1)], last),
        "batch_size": lambda: activation_patch(model, clean, corrupt, [Site(1, 1)], last, batch_size=0),
    }.items():
        with pytest.raises(ValueError, match=argument):
            call()
    with pytest.raises(ZeroDivisionError):
        activation_patch(model, clean, corrupt, [Site(1, 1)], lambda logits: 1 / 0)
    assert untouched(model) == before


def test_sites_are_numbers_and_prompts_no_longer_than_the_model_can_take():
    model = decoder("GPT2")
    clean, corrupt = token_ids(1, 5), token_ids(1, 5, seed=1)
    for site in (Site(0, True), Site(True, 0)):
        with pytest.raises((ValueError, TypeError), match="site"):
            activation_patch(model, clean, corrupt, [site], last)
    with pytest.raises(ValueError, match="input_ids are longer"):
        residual_stream(model, token_ids(1, 70))
