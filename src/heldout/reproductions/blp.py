"""BLP: does training on links give useful vectors to entities that are known by their description alone?

Claim. A text encoder that is fine-tuned to tell triples from corrupted ones ranks the entities of triples with new
entities better than a CNN (DKRL) and a bag of words do: MRR is 22 % higher on average. Frozen, its vectors tell the
classes of new entities better than the encoder did before. Which scorer is used matters less than the encoder.
Source: arXiv:2010.03496 (Daza, Cochez, Groth, WWW 2021), on WN18RR, FB15k-237 and Wikidata5M.

World. ``wordnet``, the real cell: a connected region of 1,000 nouns of WordNet with "kind of", "instance of", "member
of" and "part of", of which only the glosses are known, without names and examples. New entities are whole subtrees of
"kind of" and "instance of", 15 % each to choose by and to be tested on. Ends of a triple may have glosses that share a
word: ``overlap`` is how many do (stop words apart), ``mrr_no_overlap`` is judged apart. ``phenotypes``: likewise 1,000
terms of the Human Phenotype Ontology, whose definitions mostly share words, with "kind of" and "occurs with" (in 3
diseases at least and a tenth of those with either). ``towns``: procedural, 400
descriptions such as "a small old red town that lies beside a huge new white town" in two orders, where the order of the
words tells which are the town's own; relations are one or two steps in size, age or shade; new entities at random.

Arms. With TransE: ``lookup``, a table, which knows no new entity; ``bow``, ``dkrl``, on the same pretrained word
vectors, which are trained; ``frozen``, MiniLM with a trained linear map; ``blp-transe``, MiniLM's last layer with it
(towns: a transformer from scratch); ``oracle``, a bag of the town's own words. ``blp-complex``, ``-distmult``,
``-simple``. ``minilm``: its own vectors, for the probe, a logistic regression of lexicographers' files on all vectors.
``mrr`` is filtered, over both ends of test triples, among all entities; the epoch is chosen by raw MRR in validation.
``spread``: the largest less the smallest ``mrr`` of the four scorers, beside the ``gap`` of blp-transe to bow.

Settings. By raw validation MRR on development seed 1000, one coordinate after the other until none is better, the best
inside the grid but where said: rates by half decades from 1e-3 to 1e-1; of MiniLM's layer and of pretrained word
vectors from 3e-5 to 1e-2; of scorers without a norm also both losses and a penalty from 0 to 1, 0 being the end.
``lookup`` has the rate of ``frozen``. DKRL and BLP on ``towns`` are best in one of the last epochs; more of
them were not tried.

Deviations. One layer of MiniLM is trained, not two, in the first 5 of 30 epochs, for time; afterwards the map and the
relations alone. What lies below is computed once, without dropout. Mean for CLS, as MiniLM was trained so. Weights that
begin at random have a rate of their own, for there are some hundred steps where the paper has thousands. Vectors of 64,
32 negatives. ``bow`` has a linear map to 64, for equal lengths. On ``wordnet`` stop words are dropped for both word
baselines, before the cut, as in the official code (DKRL validates better with them); on ``towns`` DKRL keeps them, for
they tell the order. Texts are cut after 32 tokens. Triples between entities to choose by and to be tested on are
dropped. Entity search is left out. ``lookup`` is expected at chance: a check.
"""

from __future__ import annotations

import copy
import functools
from typing import Any, NamedTuple

import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch import Tensor, nn

from heldout.data import InductiveSplit, inductive_split, inductive_split_by_subtree
from heldout.lm import minilm
from heldout.measure import new_ends, probe_entities, rank_triples
from heldout.nn import (
    BagOfWordsEncoder,
    DKRLEncoder,
    EntityTable,
    InductiveLinkPredictor,
    TextEntityEncoder,
    split_encoder,
)
from heldout.sources import HPO, MINI, WORDNET, missing
from heldout.study import Claim, Study, at_least, at_most, better, cheaper, higher_is_better, lower_is_better, ordered
from heldout.tasks import KnowledgeGraph, phenotype_knowledge, shared_words, worded_towns, wordnet_knowledge
from heldout.train import embed_entities, fit_link_predictor, seeded

SCORERS = ("transe", "complex", "distmult", "simple")
DIM, LENGTH, NEGATIVES, UPPER = 64, 32, 32, 1


class Size(NamedTuple):
    entities: int
    largest: float  # subtree that is held out, as a share
    towns: int
    epochs: int  # of what is cheap
    tuned: int  # epochs of MiniLM's last layer
    scratch: int  # epochs of a transformer from scratch


class Setting(NamedTuple):
    lr: float  # of weights that begin at random, and of word vectors
    l2: float = 0.0
    loss: Any = "margin"
    tuned: float = 0.0  # of the pretrained layer, or the pretrained word vectors


CELLS = ("wordnet", "phenotypes", "towns")
REAL = {"wordnet": (wordnet_knowledge, ("kind of", "instance of")), "phenotypes": (phenotype_knowledge, ("kind of",))}
TUNED: dict[tuple[str, str, str], Setting] = {
    ("wordnet", "lookup", "transe"): Setting(3e-3),
    ("phenotypes", "lookup", "transe"): Setting(3e-3),
    ("phenotypes", "bow", "transe"): Setting(3e-3, tuned=3e-4),
    ("phenotypes", "dkrl", "transe"): Setting(3e-3, tuned=1e-3),
    ("phenotypes", "frozen", "transe"): Setting(1e-2),
    ("phenotypes", "blp", "transe"): Setting(3e-3, tuned=1e-3),
    ("wordnet", "bow", "transe"): Setting(1e-3, tuned=3e-4),
    ("wordnet", "dkrl", "transe"): Setting(1e-2, tuned=3e-4),
    ("wordnet", "frozen", "transe"): Setting(3e-3),
    ("wordnet", "blp", "transe"): Setting(3e-3, tuned=1e-3),
    ("wordnet", "blp", "complex"): Setting(1e-2, 0.0, "margin", 1e-3),
    ("wordnet", "blp", "distmult"): Setting(3e-2, 1e-3, "nll", 1e-3),
    ("wordnet", "blp", "simple"): Setting(1e-2, 0.0, "margin", 1e-3),
    ("towns", "lookup", "transe"): Setting(3e-3),
    ("towns", "oracle", "transe"): Setting(1e-2),
    ("towns", "bow", "transe"): Setting(3e-2),
    ("towns", "dkrl", "transe"): Setting(1e-2),
    ("towns", "blp", "transe"): Setting(1e-2),
    ("towns", "blp", "complex"): Setting(3e-3),
    ("towns", "blp", "distmult"): Setting(3e-3),
    ("towns", "blp", "simple"): Setting(3e-3, 1e-3, "nll"),
}
SIZES = {"smoke": Size(120, 0.15, 60, 3, 1, 2), "laptop": Size(1000, 0.05, 400, 30, 5, 30)}


class World(NamedTuple):
    """A graph, its split, and the descriptions as every encoder takes them."""

    graph: KnowledgeGraph
    split: InductiveSplit
    ids: Tensor  # of the tokens that occur, from 1; 0 is padding
    mask: Tensor
    words: Tensor  # their pretrained vectors
    stop: list[int]
    own: Tensor  # mask of the words of the entity itself, where that is known
    hidden: Tensor  # what MiniLM's lower layers make of the whole descriptions
    whole: Tensor  # their mask
    pooled: Tensor  # what MiniLM makes of them
    overlap: Tensor  # whether the ends of a test triple share a word


@functools.lru_cache(maxsize=1)
def pretrained() -> tuple[Any, Any]:
    return minilm()


@functools.lru_cache(maxsize=2)
def world_of(cell: str, seed: int, profile: str) -> World:
    return described(cell, seed, SIZES[profile]) if cell in REAL else towns(seed, SIZES[profile])


def described(cell: str, seed: int, size: Size) -> World:
    of, names = REAL[cell]
    graph = of(size.entities, least=max(2, size.entities // 50), seed=seed)  # type: ignore[operator]
    above = [graph.relations.index(name) for name in names]
    split = inductive_split_by_subtree(graph.triples, size.entities, above, largest=size.largest, seed=seed)
    model, tokenizer = pretrained()
    read, long = (
        tokenizer(list(graph.descriptions), truncation=True, max_length=most, padding=True, return_tensors="pt")
        for most in (LENGTH, 4 * LENGTH)
    )
    ids, mask = read["input_ids"], read["attention_mask"]
    below, above_them = split_encoder(model, UPPER)
    hidden = torch.zeros(*ids.shape, model.config.hidden_size)
    with torch.no_grad():
        for rows in mask.sum(1).argsort().split(64):
            inside = mask[rows, : int(mask[rows].sum(1).max())]
            states = below(input_ids=ids[rows, : inside.shape[1]], attention_mask=inside).last_hidden_state
            hidden[rows, : inside.shape[1]] = states
    pooled = pooled_states(TextEntityEncoder(above_them, DIM, pooling="mean"), hidden, mask)
    there, places = (long["input_ids"] * long["attention_mask"]).unique(return_inverse=True)
    tokens = tokenizer.convert_ids_to_tokens(there.tolist())
    stop = [at for at, token in enumerate(tokens) if token in ENGLISH_STOP_WORDS or not token.strip("#").isalnum()]
    words, said = without(stop, places, long["attention_mask"])
    return World(
        graph, split, words[:, :LENGTH], said[:, :LENGTH], model.get_input_embeddings().weight.detach()[there], [],
        said[:, :LENGTH], hidden, mask, pooled, shared_words(split.test, graph.descriptions, ENGLISH_STOP_WORDS) > 0,
    )  # fmt: skip


def without(stop: list[int], ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Texts without their stop words, in order; one of nothing else stays as it is."""
    kept = mask.bool() & ~torch.isin(ids, torch.tensor(stop))
    kept = torch.where(kept.any(1, keepdim=True), kept, mask.bool())
    order = (~kept).long().argsort(dim=1, stable=True)
    return ids.gather(1, order), kept.gather(1, order).long()


def pooled_states(encoder: TextEntityEncoder, hidden: Tensor, mask: Tensor) -> Tensor:
    """What an encoder makes of descriptions before its linear map."""
    body = copy.copy(encoder).eval()
    body._modules = dict(encoder._modules) | {"linear": nn.Identity()}
    order = mask.sum(1).argsort()
    with torch.no_grad():
        return torch.cat([body(hidden[rows], mask[rows]) for rows in order.split(64)])[order.argsort()]


def towns(seed: int, size: Size) -> World:
    graph = worded_towns(size.towns, seed=seed)
    split = inductive_split(graph.triples, size.towns, seed=seed)
    texts = [text.split() for text in graph.descriptions]
    words = ["", *sorted({word for text in texts for word in text})]
    ids = nn.utils.rnn.pad_sequence([torch.tensor([words.index(word) for word in text]) for text in texts], True)
    mask = (ids > 0).long()
    said = torch.zeros_like(mask)
    for row, (text, name) in enumerate(zip(graph.descriptions, graph.names, strict=True)):
        start = text.split().index("a") + 1 if text.startswith("a ") else len(text.split()) - 4
        assert text.split()[start : start + 3] == name.split()
        said[row, start : start + 3] = 1
    stop = [at for at, word in enumerate(words) if word in {"", "a", "town", "that", "lies", "beside", "there"}]
    vectors = torch.randn(len(words), DIM, generator=torch.Generator().manual_seed(seed))
    none = torch.zeros(0)
    return World(graph, split, ids, mask, vectors, stop, said, none, mask, none, torch.ones(len(split.test)) > 0)


def encoder_of(name: str, world: World) -> tuple[nn.Module, Tensor, Tensor]:
    """An encoder before training, with what it takes of each entity."""
    ids, mask = world.ids, world.mask
    one = torch.ones(len(ids), 1, dtype=torch.int64)
    if name == "lookup":
        return EntityTable(len(ids), DIM), torch.arange(len(ids))[:, None], one
    if name == "bow":
        return BagOfWordsEncoder(world.words, DIM, stop=world.stop), ids, mask
    if name == "oracle":
        own, first = world.own.sort(dim=1, descending=True, stable=True)
        return BagOfWordsEncoder(world.words, DIM), ids.gather(1, first), own
    if name == "dkrl":
        return DKRLEncoder(world.words, DIM), ids, mask
    if name == "frozen":
        return linear_map(world.pooled), world.pooled[:, None], one
    if len(world.hidden):
        upper = copy.deepcopy(split_encoder(pretrained()[0], UPPER)[1])
        return TextEntityEncoder(upper, DIM, pooling="mean"), world.hidden, world.whole
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(world.words), hidden_size=DIM, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=2 * DIM, max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return TextEntityEncoder(BertModel(config), DIM, pooling="mean"), ids, mask


def linear_map(features: Tensor) -> TextEntityEncoder:
    """A linear map of features that stay as they are."""
    return TextEntityEncoder(lambda features, _: features, DIM, width=features.shape[1])


class Trained(NamedTuple):
    model: InductiveLinkPredictor
    vectors: Tensor
    history: list[dict[str, float]]


@functools.lru_cache(maxsize=32)
def trained(cell: str, name: str, scorer: Any, seed: int, profile: str, chosen: Setting) -> Trained:
    """A link predictor at the epoch with the best raw validation MRR."""
    world, size = world_of(cell, seed, profile), SIZES[profile]
    split = world.split
    encoder: Any
    with seeded(seed):
        encoder, ids, mask = encoder_of(name, world)
        model = InductiveLinkPredictor(
            encoder, len(world.graph.relations), scorer=scorer, loss=chosen.loss, l2=chosen.l2
        )
        options: dict[str, Any] = {"epochs": size.epochs, "warmup": None, "pieces": 1 if mask.shape[1] == 1 else 4}
        known = [*encoder.model.parameters()] if chosen.tuned and name == "blp" else []
        known += [encoder.words.weight] if chosen.tuned and name != "blp" else []
        new = [each for each in model.parameters() if all(each is not other for other in known)]
        optimizer = torch.optim.Adam([{"params": new, "lr": chosen.lr}, {"params": known, "lr": chosen.tuned}])
        if name == "blp" and cell == "towns":
            options = {"epochs": size.scratch, "warmup": 0.2}
        elif name == "blp":
            options = {"epochs": size.tuned, "warmup": 0.2, "pieces": 4}
        candidates = torch.cat([split.train_entities, split.val_entities])
        history = fit_link_predictor(
            model, ids, mask, split.train, val=split.val, candidates=candidates, num_negatives=NEGATIVES,
            optimizer=optimizer, seed=seed, **options,
        )  # fmt: skip
        if name == "blp" and cell in REAL:  # the layer stays now: what it makes is computed once
            features = pooled_states(encoder, ids, mask)
            ids, mask = features[:, None], torch.ones(len(features), 1, dtype=torch.int64)
            mapped = linear_map(features)
            mapped.linear, model.encoder = encoder.linear, mapped
            before = copy.deepcopy(model)
            later = fit_link_predictor(
                model, ids, mask, split.train, val=split.val, candidates=candidates, num_negatives=NEGATIVES,
                lr=chosen.lr, warmup=None, epochs=size.epochs - size.tuned, seed=seed,
            )  # fmt: skip
            if max(record["mrr"] for record in history) > max(record["mrr"] for record in later):
                model = before
            history += later
    return Trained(model, embed_entities(model, ids, mask), history)


def setting(cell: str, name: str, scorer: str) -> Setting:
    return TUNED[cell, name, scorer]


def ranked(cell: str, name: str, scorer: str, seed: int, profile: str) -> dict[str, float]:
    """Where the ends of test triples stand among all entities."""
    world = world_of(cell, seed, profile)
    found = trained(cell, name, scorer, seed, profile, setting(cell, name, scorer))
    test, known = world.split.test, world.graph.triples
    filtered = rank_triples(found.model, test, found.vectors, filter_with=known)
    raw = rank_triples(found.model, test, found.vectors)
    rows = {f"mrr_new_{end}": mask for end, mask in new_ends(test, world.split.test_entities).items()}
    if cell in REAL:
        rows |= {"mrr_overlap": world.overlap, "mrr_no_overlap": ~world.overlap}
    scores = {"mrr": filtered.mrr, "hits_10": filtered.hits_10, "raw_mrr": raw.mrr}
    return scores | {name: filtered.of(mask).mrr for name, mask in rows.items() if bool(mask.any())}


def probe(cell: str, name: str, scorer: str, seed: int, profile: str) -> dict[str, float]:
    """Balanced accuracy of a linear classifier of the classes on frozen vectors of new entities."""
    world = world_of(cell, seed, profile)
    if len(world.graph.labels[world.split.train_entities].unique()) < 2:  # of a small region
        return {}
    if name == "minilm":
        vectors = world.pooled
    else:
        vectors = trained(cell, name, scorer, seed, profile, setting(cell, name, scorer)).vectors
    split, labels = world.split, world.graph.labels
    known = torch.isin(labels, labels[split.train_entities])
    parts = [part[known[part]] for part in (split.train_entities, split.val_entities, split.test_entities)]
    return {"probe": probe_entities(vectors, labels, parts).balanced_accuracy}


def run(arm: dict[str, Any], seed: int, profile: str) -> dict[str, float]:
    cell, name, scorer = arm["cell"], arm["name"], arm["scorer"]
    if name == "minilm":
        world = world_of(cell, seed, profile)
        return probe(cell, name, scorer, seed, profile) | {"overlap": float(world.overlap.double().mean())}
    if name == "spread":
        found = [ranked(cell, "blp", each, seed, profile)["mrr"] for each in SCORERS]
        gap = found[0] - ranked(cell, "bow", "transe", seed, profile)["mrr"]
        spread = max(found) - min(found)
        return {"gap": gap, "spread": spread, "gap_over_spread": gap - spread}
    scores = ranked(cell, name, scorer, seed, profile)
    return scores | (probe(cell, name, scorer, seed, profile) if cell in REAL else {})


HIGHER = (
    *("mrr", "hits_10", "raw_mrr", "mrr_new_head", "mrr_new_tail", "mrr_new_both", "mrr_overlap", "mrr_no_overlap"),
    *("probe", "gap", "gap_over_spread"),
)
METRICS = dict.fromkeys(HIGHER, higher_is_better) | {"spread": lower_is_better, "overlap": lower_is_better}
NAMES = ("lookup", "bow", "dkrl")
SPREAD = ("wordnet", "towns")  # cells with all scorers
ARMS = {f"{cell} {name}": {"cell": cell, "name": name, "scorer": "transe"} for cell in CELLS for name in NAMES}
ARMS |= {
    f"{cell} blp-{scorer}": {"cell": cell, "name": "blp", "scorer": scorer}
    for cell in CELLS
    for scorer in (SCORERS if cell in SPREAD else SCORERS[:1])
}
ARMS |= {f"{cell} spread": {"cell": cell, "name": "spread", "scorer": "transe"} for cell in SPREAD}
ARMS |= {
    f"{cell} {name}": {"cell": cell, "name": name, "scorer": "transe"} for cell in REAL for name in ("frozen", "minilm")
}
ARMS |= {
    "towns oracle": {"cell": "towns", "name": "oracle", "scorer": "transe"},
}


SOURCE = {"wordnet": WORDNET, "phenotypes": HPO}


def tenth_more(cell: str, arm: str, than: str, on: str) -> Claim:
    return cheaper(
        f"{cell} {than}", than=f"{cell} {arm}", on=on, ratio=1 / 1.1,
        text=f"{cell} {arm} has at least 1.1 x the {on} of {cell} {than}",
    )  # fmt: skip


study = Study(
    slug="blp",
    title="Inductive Entity Representations from Text via Link Prediction",
    arms=ARMS,
    run=run,
    metrics=METRICS,
    optional=set(METRICS),
    needs={
        arm: functools.partial(missing, [SOURCE[each["cell"]], MINI])
        for arm, each in ARMS.items()
        if each["cell"] in REAL
    },
    shared_setup=True,
    claims=[
        *(tenth_more(cell, "blp-transe", "bow", "mrr") for cell in CELLS),
        tenth_more("wordnet", "blp-transe", "bow", "mrr_no_overlap"),
        *(better(f"{cell} blp-transe", than=f"{cell} dkrl", on="mrr") for cell in CELLS),
        *(ordered([f"{cell} bow", f"{cell} dkrl"], on="mrr") for cell in CELLS),
        *(
            better(f"{cell} blp-transe", than=f"{cell} frozen", on="mrr",
                   text=f"{cell}: training the encoder, too, has better mrr")
            for cell in REAL
        ),
        *(better(f"{cell} blp-transe", than=f"{cell} minilm", on="probe", margin=0.03) for cell in REAL),
        *(
            at_least(f"{cell} spread", on="gap_over_spread", value=0, text=f"{cell}: the four scorers lie closer "
                     "together than TransE on words and TransE on the encoder")
            for cell in SPREAD
        ),
    ],
    checks=[
        at_most(f"{cell} lookup", on="mrr", value=0.05, text=f"{cell}: a table knows no new entity") for cell in CELLS
    ],
    seeds={"smoke": 1, "laptop": 3},
    time_limit=900,
)  # fmt: skip
