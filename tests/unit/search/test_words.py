"""BM25 in the corpus's language: stemmers, stop words, detection, and where it is stored."""

import unicodedata

import pytest

from dptdr.errors import ConfigError, DataError, VectorsError
from dptdr.io.beir import BeirFolder, write_beir
from dptdr.records import Passage, Query
from dptdr.search.bm25 import Bm25Index
from dptdr.search.indexes.building import BuildSettings, build_index
from dptdr.search.indexes.local import open_index
from dptdr.search.ranking import measure, rank
from dptdr.search.vectors.documents import Source
from dptdr.search.vectors.encoding import encode_folder
from dptdr.search.words import detect_language, languages, tokenizer

PARAGRAPHS = {
    "mühle": "Die alte Mühle am Bach wurde im Winter repariert, und die Bauern brachten ihr Korn.",
    "häuser": "Viele Häuser der Stadt haben rote Dächer, die man von den Hügeln aus sehen kann.",
    "fischer": "Am Morgen fuhren die Fischer auf das Meer und kehrten mit vollen Netzen zurück.",
    "museum": "Das Museum zeigt Bilder von Malern, die vor zweihundert Jahren hier gelebt haben.",
    "brot": "Der Bäcker backt jeden Tag Brote aus Roggen, die er auf dem Markt verkauft.",
}
QUESTIONS = {
    "mühle": "Wer mahlt die Körner in den Mühlen?",
    "häuser": "Was hat ein Haus auf dem Dach von hier?",
    "fischer": "Wo ist das Netz des Fischers, das von dem Mann am Bach?",
    "museum": "Welches Bild hat der Maler aus dem, das die und jeder hier sehen kann?",
    "brot": "Wo ist das Brot, das man auf dem Markt und vor Jahren haben kann?",
}
SENTENCES = {
    "danish": "Den gamle by ligger ved kysten, og der er mange huse, bygget af fiskere til alle.",
    "dutch": "De oude stad ligt aan de kust en er zijn veel kleine huizen. Ik heb ze niet gezien.",
    "english": "The old town lies on the coast, and there are many small houses in it.",
    "french": "La vieille ville se trouve sur la côte et il y a beaucoup de petites maisons.",
    "german": PARAGRAPHS["häuser"],
    "italian": "La vecchia città si trova sulla costa e ci sono molte piccole case, ma non le ho.",
    "norwegian": "Byen ligger ved kysten, og det er mange små hus. De ble bygd av noen fiskere.",
    "portuguese": "A cidade velha fica na costa e há muitas casas pequenas, mas eu não as vi.",
    "russian": "Старый город лежит на берегу, и там много домов. Я их раньше не видел.",
    "spanish": "La ciudad está en la costa y hay muchas casas pequeñas, pero no las he visto.",
    "swedish": "Den gamla staden ligger vid kusten och där finns många hus. Jag har inte sett dem.",
    "turkish": "Eski şehir kıyıda yer alır ve orada çok küçük evler için yer vardır, ama bu ne?",
}


@pytest.fixture
def german(tmp_path):
    write_beir(
        tmp_path / "data",
        passages=[Passage(name, text) for name, text in PARAGRAPHS.items()],
        queries=[Query(f"f-{name}", text) for name, text in QUESTIONS.items()],
        qrels={"test": {f"f-{name}": {name: 1} for name in QUESTIONS}},
        meta={},
    )
    return BeirFolder(tmp_path / "data")


def silent(_):
    from contextlib import nullcontext

    return nullcontext(lambda done, total: None)


def test_german_questions_meet_inflected_words_only_with_the_german_stemmer(german):
    qrels = german.qrels("test")
    found = {}
    for system in ("bm25", "bm25:german", "bm25:english"):
        ranking = rank(system, german, queries=list(german.queries()), depth=5, phase=silent)
        report = measure(ranking, german, split="test", qrels=qrels, measures=["RR@5"], depth=5)
        found[ranking.system] = report.measures["RR@5"]
        assert report.details["language"] == ("english" if "english" in system else "german")
    assert found["bm25-german"] == 1
    assert found["bm25"] < 0.8


@pytest.mark.parametrize("language", SENTENCES)
def test_auto_tells_languages_apart_by_their_stop_words(language):
    assert detect_language([SENTENCES[language]]) == language


def test_auto_is_english_where_no_language_stands_out():
    assert detect_language([]) == "english"
    assert detect_language(["def f(x): return x", "SELECT id FROM t"]) == "english"
    assert detect_language(["fox fox", "fox dog", "dog dog", "cat"]) == "english"


@pytest.mark.parametrize("language", languages())
def test_every_language_has_a_tokenizer_and_keeps_words_whole(language):
    words = tokenizer(language)
    assert list(words.streaming_tokenize(["xylophone xylophone"], allow_empty=False)) == [[0, 0]]
    if language == "hindi":
        assert words.splitter("हिन्दी भाषा") == ["हिन्दी", "भाषा"]


def test_an_unknown_language_is_one_error_that_lists_those_there_are(german):
    with pytest.raises(ConfigError, match=r"the languages auto, arabic, .*german.*, got 'klingon'"):
        rank("bm25:klingon", german, queries=[], depth=1, phase=silent)


def test_the_language_is_stored_with_an_index_and_kept(german, tmp_path, encoder):
    from dptdr.search.indexes.refresh import refresh_index

    folder = encode_folder(
        encoder, german.passages(), out=tmp_path / "v", source=Source(fingerprint="x")
    )
    index, _ = build_index(
        folder, out=tmp_path / "i", settings=BuildSettings(bm25=True, language="german")
    )
    assert index.language == index.lexical().language == "german"
    refresh_index(encoder, data=german.path, vectors=tmp_path / "v", index=tmp_path / "i")
    renewed = open_index(tmp_path / "i")
    assert renewed.language == "german"
    (hit,) = renewed.lexical().search([Query("q", "Das Haus")], depth=1)["q"]
    assert hit.passage_id == "häuser"
    with pytest.raises(VectorsError, match="language has no effect without bm25"):
        build_index(folder, out=tmp_path / "j", settings=BuildSettings(language="german"))
    loaded = Bm25Index.load(tmp_path / "i" / "bm25", verify=True)
    assert loaded.language == "german"
    renewed.verify()
    weights = tmp_path / "i" / "bm25" / "data.csc.index.npy"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"data.csc.index.npy: .*sha256: expected .*, got"):
        renewed.verify()


@pytest.mark.parametrize(
    ("language", "passage", "query"),
    [
        ("german", "Die Ku\u0308nste im Su\u0308den", "K\u00fcnste"),
        ("german", "Die K\u00fcnste im S\u00fcden", "Ku\u0308nste"),
        ("turkish", "\u0130STANBUL kalabal\u0131k", "istanbul"),
        ("turkish", "BEYAZ I\u015eIK", "\u0131\u015f\u0131k"),
    ],
)
def test_words_match_however_their_letters_are_written(language, passage, query):
    index = Bm25Index.build(
        [Passage("other", "etwas ganz anderes"), Passage("p", passage)], language=language
    )

    assert [hit.passage_id for hit in index.search([Query("q", query)], depth=1)["q"]] == ["p"]


def test_a_language_is_detected_from_decomposed_letters():
    decomposed = unicodedata.normalize("NFD", SENTENCES["german"])

    assert decomposed != SENTENCES["german"]
    assert detect_language([decomposed]) == detect_language([SENTENCES["german"]]) == "german"
