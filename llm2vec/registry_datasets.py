"""The datasets that are no mteb tasks (those carry their revision in the task table).

Imports nothing of this project but the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llm2vec.registry import UNPINNED

CONLL = "eriktks/conll2003"
WIKITEXT = "Salesforce/wikitext"
SENTENCES = "princeton-nlp/datasets-for-simcse"  # of Gao et al. (2021)

STAND_IN = "stand-in for training text"  # status of texts that are not those of the paper

# Names under which a mirror may hold them.
MIRROR_NAMES: Mapping[str, str] = MappingProxyType(
    {CONLL: "conll2003", WIKITEXT: "wikitext-103-raw-v1", SENTENCES: "wiki-sentences"}
)
# A branch moves, and 'unpinned' is whatever is newest: records name the commit that it meant.
HUB_REVISIONS: Mapping[str, str] = MappingProxyType(
    {
        # Its own branch holds a loading script, which ``datasets`` runs no more; the hub keeps the
        # rows of that script converted, with the same integer tags.
        CONLL: "refs/convert/parquet",
        WIKITEXT: "b08601e04326c79dfdd32d625aee71d232d685c3",
        SENTENCES: UNPINNED,
    }
)
