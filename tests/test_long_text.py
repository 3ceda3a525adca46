"""Texts that are longer than what the encoder sees at once, and late chunking.

Expected values are means, by hand, over the token vectors of the NumPy reference. Each character is
a token, and each word has one more, ▁, in front: "ab c" is <s> ▁ a b ▁ c </s>.
"""

import jax
import numpy as np
import pytest
from published import PROMPTS, TASKS, published_config, published_shapes, random_tensor
from reference import Reference
from tiny import TINY, write_tiny

from jina_jax import Batching, JinaEmbeddings, make_mesh
from jina_jax.text.sentences import chunk_by_sentences

LONG = "Rain fell. All night, all day? It fell!"  # 8 words, 42 tokens
TEXTS = [LONG, "", "one two six", "x" * 27]  # 42, 2, 14 and 30 tokens
MIXED = ["separation", None, "retrieval.query", "text-matching"]
PASSAGE = "retrieval.passage"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """On one device, in rows of one length, so that few programs are compiled."""
    return JinaEmbeddings.from_pretrained(
        write_tiny(tmp_path_factory.mktemp("model")),
        mesh=make_mesh(devices=jax.devices()[:1]),
        batching=Batching(token_budget=128, row_lengths=(8, 128)),
    )


@pytest.fixture(scope="module")
def hidden(model):
    """(text, task, windows) → the vectors of all tokens, (T, D).

    A window is (start, stop, keep): its tokens, and the first whose vectors count.
    """
    shapes = published_shapes(TINY)
    tensors = {k: random_tensor(k, s, np.dtype("float32"), 0) for k, s in shapes.items()}
    reference = Reference(tensors, published_config(TINY))

    def vectors(text, task=None, windows=None):
        ids = np.array(model.tokenize(text))
        task = None if task is None else TASKS.index(task)
        windows = windows or [(0, len(ids), 0)]
        assert [keep for *_, keep in windows[1:]] == [stop for _, stop, _ in windows[:-1]]
        parts = [reference(ids[i:j], task)[-1][keep - i :] for i, j, keep in windows]
        return np.concatenate(parts)

    return vectors


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# ---------------------------------------------------------------- encode

# (start, stop, keep) in 42 tokens, 16 at once.
WINDOWS = {
    0: [(0, 16, 0), (16, 32, 16), (32, 42, 32)],
    None: [(0, 16, 0), (12, 28, 16), (24, 40, 28), (36, 42, 40)],  # a quarter
    13: [(0, 16, 0), *((k - 13, k + 3, k) for k in range(16, 40, 3)), (27, 42, 40)],
}


@pytest.mark.parametrize("overlap", WINDOWS)
@pytest.mark.parametrize("task", [None, "separation"])
def test_windows_are_averaged_over_all_tokens(model, hidden, overlap, task):
    ours, info = model.encode(
        LONG, task=task, max_length=16, long_text="windows", overlap=overlap, return_info=True
    )
    expected = unit(hidden(LONG, task, WINDOWS[overlap]).mean(0))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert (info.tokens.tolist(), info.dropped.tolist()) == ([42], [0])


def test_windows_see_less_than_the_whole(model, hidden):
    ours = model.encode(LONG, max_length=16, long_text="windows")
    assert np.abs(ours - unit(hidden(LONG).mean(0))).max() > 1e-2


def test_long_and_short_texts_together(model, hidden):
    ours, info = model.encode(
        TEXTS, task=MIXED, prompt=None, max_length=16, long_text="windows", return_info=True
    )
    windows = [WINDOWS[None], None, None, [(0, 16, 0), (12, 28, 16), (24, 30, 28)]]
    for row, text, task, own in zip(ours, TEXTS, MIXED, windows, strict=True):
        np.testing.assert_allclose(row, unit(hidden(text, task, own).mean(0)), atol=1e-5)
    assert info.tokens.tolist() == [42, 2, 14, 30]
    assert info.dropped.tolist() == [0] * 4


@pytest.mark.parametrize("batch_size", [None, 2])
def test_texts_that_fit_are_as_if_truncated(model, batch_size):
    options = {"task": MIXED, "prompt": None, "batch_size": batch_size}
    windows = model.encode(TEXTS, long_text="windows", **options)
    np.testing.assert_array_equal(windows, model.encode(TEXTS, long_text="truncate", **options))


def test_prompt_counts_to_the_first_window(model, hidden):
    prompted = PROMPTS["retrieval.query"] + "one two six"
    assert len(model.tokenize(prompted)) == 69
    windows = [(0, 64, 0), (48, 69, 64)]
    ours = model.encode("one two six", task="retrieval.query", max_length=64, long_text="windows")
    expected = unit(hidden(prompted, "retrieval.query", windows).mean(0))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_dimension_is_cut_before_windows_are_normalised(model, hidden):
    options = {"max_length": 16, "long_text": "windows"}
    mean = hidden(LONG, windows=WINDOWS[None]).mean(0)
    raw = model.encode(LONG, normalize_embeddings=False, **options)
    np.testing.assert_allclose(raw, mean, atol=1e-5)
    cut = model.encode(LONG, truncate_dim=32, **options)
    np.testing.assert_allclose(cut, unit(mean[:32]), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"long_text": "cut"}, r"long_text='cut': expected one of \('truncate', 'windows'\)"),
        ({"long_text": None}, "long_text=None"),
        ({"overlap": 16}, "overlap=16: expected an integer from 0 to max_length - 1 = 15"),
        ({"overlap": -1}, "overlap=-1"),
        ({"overlap": 2.0}, "overlap=2.0"),
        ({"overlap": True}, "overlap=True"),
        ({"output_value": "token_embeddings"}, "long_text='windows'.*'token_embeddings'"),
    ],
)
def test_refusals(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.encode(TEXTS, **{"max_length": 16, "long_text": "windows", **options})


def test_windows_need_the_mean_pooler(tmp_path, model):
    first = JinaEmbeddings.from_pretrained(write_tiny(tmp_path, emb_pooler="cls"))
    with pytest.raises(ValueError, match=r"long_text='windows'.*pooler 'cls'"):
        first.encode("a", long_text="windows")


# ---------------------------------------------------------------- encode_chunks

# <s> ▁ o n e ▁ t w o ▁ s i x </s>
THREE = "one two six"


def chunk_means(vectors, *ranges):
    return np.stack([vectors[start:stop].mean(0) for start, stop in ranges])


@pytest.mark.parametrize(
    ("chunks", "spans", "ranges"),
    [
        (5, [(0, 5), (5, 10), (10, 11)], [(0, 7), (7, 12), (12, 14)]),
        (99, [(0, 11)], [(0, 14)]),
        ("sentences", [(0, 11)], [(0, 14)]),
        (lambda text: [(i, i + 3) for i in (0, 4, 8)], ..., [(0, 5), (5, 9), (9, 14)]),
        ([(0, 3), (4, 7), (8, 11)], ..., [(0, 5), (5, 9), (9, 14)]),
        ([(4, 7)], ..., [(5, 9)]),
        # Overlapping, repeated, out of order, with half a word and white space.
        ([(5, 11), (0, 7), (5, 11), (3, 6)], ..., [(7, 14), (0, 9), (7, 14), (5, 8)]),
        (np.array([[0, 3], [4, 7]]), [(0, 3), (4, 7)], [(0, 5), (5, 9)]),
        (lambda text: ((i, i + 3) for i in (0, 4)), [(0, 3), (4, 7)], [(0, 5), (5, 9)]),
    ],
    ids=["tokens", "all", "sentence", "function", "spans", "part", "mixed", "array", "generator"],
)
def test_a_vector_for_every_chunk_in_order(model, hidden, chunks, spans, ranges):
    ours = model.encode_chunks(THREE, chunks, task=None)
    if spans is ...:
        spans = chunks(THREE) if callable(chunks) else chunks
    assert ours.spans == spans
    assert ours.embeddings.dtype == np.float32
    expected = unit(chunk_means(hidden(THREE), *ranges))
    np.testing.assert_allclose(ours.embeddings, expected, atol=1e-5)


def test_sentences(model, hidden):
    ours = model.encode_chunks(LONG, "sentences", task=None)
    assert [LONG[start:stop] for start, stop in ours.spans] == [
        "Rain fell.",
        "All night, all day?",
        "It fell!",
    ]
    assert ours.spans == model.encode_chunks(LONG, chunk_by_sentences).spans
    expected = unit(chunk_means(hidden(LONG), (0, 12), (12, 32), (32, 42)))
    np.testing.assert_allclose(ours.embeddings, expected, atol=1e-5)


@pytest.mark.parametrize("task", [None, "separation", PASSAGE])
def test_the_whole_text_as_a_chunk_is_encode(model, task):
    ours = model.encode_chunks(LONG, [(0, len(LONG))], task=task)
    np.testing.assert_allclose(ours.embeddings[0], model.encode(LONG, task=task), atol=1e-5)


def tokens_of(text, start, stop):
    """Count tokens: characters, and the ▁ of each word that starts here."""
    starts = [text[i - 1 : i] in ("", " ") for i in range(start, stop) if text[i] != " "]
    return len(starts) + sum(starts)


@pytest.mark.parametrize("chunks", [1, 7, "sentences"])
def test_the_mean_of_all_chunks_is_encode(model, chunks):
    options = {"task": None, "normalize_embeddings": False}
    spans, vectors = model.encode_chunks(LONG, chunks, **options)
    counts = [tokens_of(LONG, *span) for span in spans]
    counts[0] += 1  # <s>
    counts[-1] += 1
    assert sum(counts) == 42
    mean = np.average(vectors, axis=0, weights=counts)
    np.testing.assert_allclose(mean, model.encode(LONG, **options), atol=1e-5)


def test_the_task_is_that_of_passages_and_its_prompt_goes_to_the_first_chunk(model, hidden):
    spans = [(0, 3), (4, 7), (8, 11)]
    vectors = hidden(PROMPTS[PASSAGE] + THREE, PASSAGE)
    assert len(vectors) == 38 + 14
    expected = unit(chunk_means(vectors, (0, 43), (43, 47), (47, 52)))
    ours = model.encode_chunks(THREE, spans).embeddings
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_allclose(model.encode_chunks(THREE, spans[1:2])[1], expected[1:2], atol=1e-5)


@pytest.mark.parametrize(("prompt", "first"), [(None, 0), ("On: ", 4)])
def test_prompt_can_be_replaced(model, hidden, prompt, first):
    vectors = hidden((prompt or "") + THREE, PASSAGE)
    expected = unit(chunk_means(vectors, (0, first + 5), (first + 5, first + 9)))
    ours = model.encode_chunks(THREE, [(0, 3), (4, 7)], prompt=prompt).embeddings
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_without_an_adapter_for_passages_there_is_none(tmp_path, model):
    names = dict.fromkeys("abcde", "")
    directory = write_tiny(tmp_path, lora_adaptations=[*names], task_instructions=names)
    other = JinaEmbeddings.from_pretrained(directory, mesh=model.engine.mesh)
    ours = other.encode_chunks(THREE, [(0, 11)]).embeddings[0]
    np.testing.assert_allclose(ours, other.encode(THREE, task=None), atol=1e-5)
    assert np.abs(ours - other.encode(THREE, task="b")).max() > 1e-2


@pytest.mark.parametrize("overlap", WINDOWS)
def test_chunks_of_a_text_longer_than_the_encoder_sees(model, hidden, overlap):
    vectors = hidden(LONG, "separation", WINDOWS[overlap])
    # Each sentence; all; one letter in two windows; half of the second window and all of the third.
    spans = [(0, 10), (11, 30), (31, 39), (0, 39), (12, 13), (19, 37)]
    ranges = [(0, 12), (12, 32), (32, 42), (0, 42), (14, 15), (21, 39)]
    ours = model.encode_chunks(
        LONG, spans, task="separation", max_length=16, overlap=overlap, normalize_embeddings=False
    )
    np.testing.assert_allclose(ours.embeddings, chunk_means(vectors, *ranges), atol=1e-5)


def test_the_whole_text_as_a_chunk_is_encode_with_windows(model):
    options = {"task": "separation", "max_length": 16}
    ours = model.encode_chunks(LONG, [(0, 39)], **options).embeddings[0]
    windows = model.encode(LONG, long_text="windows", **options)
    np.testing.assert_allclose(ours, windows, atol=1e-5)


def test_truncate_dim_cuts_chunks_before_normalising(model, hidden):
    ours = model.encode_chunks(THREE, [(0, 3), (4, 7)], task=None, truncate_dim=32)
    expected = unit(chunk_means(hidden(THREE), (0, 5), (5, 9))[:, :32])
    np.testing.assert_allclose(ours.embeddings, expected, atol=1e-5)


@pytest.mark.parametrize("batching", [None, Batching(64, packing=False)], ids=["packed", "padded"])
@pytest.mark.parametrize("chunks", [4, "sentences"])
def test_texts_together_are_as_each_alone(model, batching, chunks):
    both = JinaEmbeddings(
        model.config,
        model.state,
        model.tokenizer,
        mesh=model.engine.mesh,
        batching=batching or model.batching,
    )
    together = both.encode_chunks(TEXTS, chunks, task=MIXED, max_length=32)
    assert [len(found.spans) for found in together] == ([10, 0, 3, 7], [3, 0, 1, 1])[chunks != 4]
    for text, task, found in zip(TEXTS, MIXED, together, strict=True):
        alone = model.encode_chunks(text, chunks, task=task, max_length=32)
        assert found.spans == alone.spans
        assert found.embeddings.shape == (len(found.spans), 64)
        np.testing.assert_allclose(found.embeddings, alone.embeddings, atol=1e-5)


def test_a_list_gives_a_list(model):
    (found,) = model.encode_chunks([THREE], [[(0, 3)]])
    alone = model.encode_chunks(THREE, [(0, 3)])
    assert found.spans == alone.spans == [(0, 3)]
    np.testing.assert_array_equal(found.embeddings, alone.embeddings)
    assert model.encode_chunks([], "sentences") == []
    assert model.encode_chunks("", "sentences").embeddings.shape == (0, 64)
    assert model.encode_chunks(THREE, [], truncate_dim=32).embeddings.shape == (0, 32)


SINGLE_REFUSED = [
    ([(0, 3), (4, 12)], r"spans\[1\]=\(4, 12\): expected 0 ≤ start < stop ≤ 11"),
    ([(-1, 3)], r"spans\[0\]=\(-1, 3\)"),
    ([(3, 3)], r"spans\[0\]=\(3, 3\), '': expected characters of at least one token"),
    ([(3, 4)], r"spans\[0\]=\(3, 4\), ' ': expected characters of at least one token"),
    ([(5, 4)], r"spans\[0\]=\(5, 4\)"),
    ([(0,)], r"spans\[0\]=\(0,\): expected \(start, stop\), two integers"),
    ((0, 3), r"spans\[0\]=0: expected \(start, stop\), two integers"),
    (lambda text: None, "spans: expected pairs of integers, got None"),
    (lambda text: text, "spans: expected pairs of integers, got 'one two six'"),
    (lambda text: [(0, 99)], r"spans\[0\]=\(0, 99\)"),
    (0, "chunks=0: expected an integer of at least 1"),
    (True, "chunks=True"),
    ("tokens", "chunks='tokens': expected a number of tokens, 'sentences', a function or spans"),
    (None, "chunks=None"),
    (2.5, "chunks=2.5"),
    ({"a": 1}, "chunks={'a': 1}"),
]


@pytest.mark.parametrize(("chunks", "message"), SINGLE_REFUSED)
def test_chunks_refused(model, chunks, message):
    with pytest.raises(ValueError, match=message):
        model.encode_chunks(THREE, chunks)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([[(0, 3)]], "chunks: expected spans for each of 2 texts, got 1"),
        ([[(0, 3)]] * 3, "chunks: expected spans for each of 2 texts, got 3"),
        ([(0, 3), (4, 7)], r"spans\[0\]=0: expected \(start, stop\), two integers"),
        ([[(0, 3)], [(0, 4)]], r"texts\[1\]: spans\[0\]=\(0, 4\): expected 0 ≤ .* ≤ 3"),
    ],
)
def test_chunks_of_several_texts_refused(model, chunks, message):
    with pytest.raises(ValueError, match=message):
        model.encode_chunks([THREE, "six"], chunks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "search"}, "task='search'"),
        ({"overlap": 16}, "overlap=16: expected an integer from 0 to max_length - 1 = 15"),
        ({"max_length": 1}, "max_length=1"),
        ({"truncate_dim": 48}, "truncate_dim=48"),
        ({"prompt": 7}, "prompt=7"),
    ],
)
def test_options_of_chunks_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.encode_chunks(THREE, 4, **{"max_length": 16, **options})
