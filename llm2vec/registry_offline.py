"""The data of the offline suite's tasks: the revision that each must have.

Apart from the builders (``offline_suite``), which need mteb: whether a record is of these data is
asked before anything is loaded. Imports nothing of this project.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# offline_suite.data_revision(build_data(name)); a test compares them.
OFFLINE_REVISIONS: Mapping[str, str] = MappingProxyType(
    {
        "OfflineHeadingRetrieval": "52679eb26b336252",
        "OfflineContinuationRetrieval": "c57f2b0f6b661219",
        "OfflineNewsRetrieval": "3b0c59518e7a5b0a",
        "OfflineCaptionReranking": "97cd0578de9d949a",
        "OfflineSubjectReranking": "b2801c68e6bd7dc3",
        "OfflineArticleClustering": "4f9d659d26fa2610",
        "OfflineSectionClustering": "51bcbe080f9e0955",
        "OfflineSubjectClustering": "da0f00e2e28b1847",
        "OfflineParagraphPairs": "d72005b7b9f4e212",
        "OfflinePolarityClassification": "05ca8cf6bdfb8a52",
        "OfflineNewsgroupClassification": "985fdbb23fd6b46d",
        "OfflineChapterClassification": "4cbe049c5bd0efea",
        "OfflineLeeSTS": "4f413a24b3bfe08a",
        "OfflineWordSimSTS": "108f0eb5544d7c88",
        "OfflineSimLexSTS": "fe8715a78c6af506",
    }
)
