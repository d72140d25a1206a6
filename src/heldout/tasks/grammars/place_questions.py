"""Questions on towns, rivers and regions, each asked in several ways, with their queries; the places are made up.

They stand for sets that people wrote (GeoQuery, Zelle and Mooney, AAAI 1996, with the functional queries of Kate et
al., AAAI 2005): many wordings for one query, few entities, nested descriptions.
"""

from __future__ import annotations

from heldout.tasks.grammars.synchronous import SynchronousGrammar

PLACE_NAMES = {
    "town": ("aldby", "brint", "corvale", "dunmere", "eskham", "farholt", "grimsey", "holmwick", "ister", "jarrow"),
    "river": ("ouze", "tarn", "wend", "lynn", "mire", "soar"),
    "region": ("northmark", "eastfen", "southwold", "westmoor", "midlea", "highfell"),
}
"""The names of all places, by their kind; a place is written alike in question and query."""

_ASKED = {
    "population ( <town> )": (
        "how many people live in <town>",
        "what is the population of <town>",
        "give me the number of inhabitants of <town>",
        "how populous is <town>",
    ),
    "height ( <town> )": (
        "how high does <town> lie",
        "what is the elevation of <town>",
        "at what height is <town>",
    ),
    "region_of ( <town> )": (
        "where is <town>",
        "which region does <town> belong to",
        "in what region can i find <town>",
        "tell me where <town> lies",
    ),
    "length ( <river> )": (
        "how long is <river>",
        "what is the length of <river>",
        "tell me how many miles <river> runs",
    ),
    "crosses ( <river> )": (
        "which regions does <river> cross",
        "through what regions does <river> flow",
        "name the regions that <river> runs through",
    ),
    "area ( <region> )": (
        "how large is <region>",
        "what is the area of <region>",
        "give me the size of <region>",
    ),
    "count ( towns ( <region> ) )": (
        "how many towns are there in <region>",
        "count the towns of <region>",
        "what is the number of towns in <region>",
    ),
    "rivers ( <region> )": (
        "which rivers are in <region>",
        "name the rivers of <region>",
        "what rivers flow through <region>",
    ),
    "borders ( <region> )": (
        "what borders <region>",
        "which regions are next to <region>",
        "name the neighbours of <region>",
    ),
    "on ( <town> , <river> )": (
        "does <town> lie on <river>",
        "is <town> on <river>",
        "does <river> flow past <town>",
    ),
    "distance ( <town> , <region> )": (
        "how far is it from <town> to <region>",
        "what is the distance between <town> and <region>",
    ),
}

_DESCRIBED: dict[str, dict[str, tuple[str, ...]]] = {
    "town": {
        "capital ( <region> )": ("the capital of <region>", "the main town of <region>"),
        "largest ( towns ( <region> ) )": ("the largest town in <region>", "the biggest town of <region>"),
        "mouth ( <river> )": ("the town at the mouth of <river>",),
    },
    "river": {
        "longest ( rivers ( <region> ) )": ("the longest river in <region>", "the longest river of <region>"),
    },
    "region": {
        "region_of ( <town> )": ("the region of <town>", "the region where <town> lies"),
    },
}


def place_questions(depth: int = 3) -> SynchronousGrammar:
    """Returns the grammar of questions on made-up places: 11 queries, 34 wordings, 22 names, nested descriptions.

    Two of three places are named, the others described, until the depth is reached.

    Args:
        depth: 2 for names alone; each more lets a place be described by another one. Up to 3, each query is short.

    Raises:
        ValueError: a depth below 2.

    Example:
        >>> " ".join(place_questions().interpret("how populous is the capital of eastfen"))
        'population ( capital ( eastfen ) )'
        >>> len(place_questions().sample(2000))
        2000
    """
    rules = {"question": [(said, query) for query, wordings in _ASKED.items() for said in wordings]}
    for kind, names in PLACE_NAMES.items():
        rules[kind] = [(f"<{kind}_name>", f"<{kind}_name>")] * 2 + [(f"<{kind}_described>", f"<{kind}_described>")]
        rules[f"{kind}_name"] = [(name, name) for name in names]
        rules[f"{kind}_described"] = [
            (said, query) for query, wordings in _DESCRIBED[kind].items() for said in wordings
        ]
    return SynchronousGrammar(rules, depth=2 * depth - 1)
